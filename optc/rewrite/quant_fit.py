"""The 8-bit grid of one activation, and how much of its range to hand to the weights.

Per tensor and symmetric, int8 or E4M3: `x ~ scale * q`. A few channels far larger than the rest
would waste the grid of all others; dividing channel k by s[k] = |x|max^a / |w|max^(1-a), and
multiplying row k of the weights by it, leaves the product as it is and evens the channels out
(SmoothQuant, Xiao et al., 2022, arXiv 2211.10438).

Strength a and the margin around the range are searched per activation. Ranges are learnt on one
half of the samples and judged on the other, so that an activation beyond what calibration saw,
which the grid clips, counts as the error it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.streamed import EVERY
from optc.rewrite.evenly import evenly
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_observe import Seen
from optc.rewrite.quant_sites import Site
from optc.rewrite.quant_stream import Constant

__all__ = ["Fit", "fit", "product_error", "sample_columns", "with_error"]

LARGEST = 127
"""Last step of the int8 grid of activations."""

_LARGEST_E4M3 = 448
"""Largest number of E4M3."""

_STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""From the paper's usual 0.5 up; those of SmolLM2-135M land at 0.8 and 0.9, nearly all."""

_MARGINS = (1.0, 1.15, 1.3)
"""Around what was seen; 1.3 costs 0.4 bits of the grid."""

_COLUMNS = 256
"""Output channels that stand for all while strengths are compared: the mean of their errors spreads
a sixteenth as far as one of them."""

_FAINT = 1e-5
"""Of the largest channel, the least that one counts as: dead ones would ask for infinite factors.
Far below a step of int8, 1/127 of the largest, for faint channels gain most by being evened out."""

_WORTHWHILE = 0.9
"""How much of the error may be left, so that factors, which may cost a Mul, are used at all."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """How one activation is quantised.

    Attributes:
        largest: The magnitude that the last step of the grid stands for, factors divided out.
        factors: What each channel is divided by, float32 [K]; None for nothing.
        error: Relative error of the products that read it, root mean square over held-out rows.
        strength: The SmoothQuant strength; 0 where `factors` is None.
        is_float: Whether steps are the numbers of E4M3, up to 448, not integers up to 127.
    """

    largest: float
    factors: Array | None = None
    error: float = math.nan
    strength: float = 0.0
    is_float: bool = False

    @property
    def dtype(self) -> ir.DataType:
        """Element type of the steps."""
        return ir.DataType.FLOAT8E4M3FN if self.is_float else ir.DataType.INT8

    def scale(self, dtype: ir.DataType = ir.DataType.FLOAT) -> Array:
        """Step of the grid, 0-d, of `dtype`.

        A dead activation, whose range is nothing or too small for a normal number of `dtype`, gets
        step 1: its values become the zero that they nearly are.
        """
        kind = np.dtype(dtype.numpy())
        last = _LARGEST_E4M3 if self.is_float else LARGEST
        scale = np.asarray(self.largest / last, kind)
        return scale if scale >= np.finfo(kind).tiny else np.ones((), kind)

    def rounded(self, rows: Array) -> Array:
        """What rows [R,K], factors divided out, become."""
        scale = self.scale()
        if self.is_float:
            near = np.clip(rows / scale, -_LARGEST_E4M3, _LARGEST_E4M3)
            return near.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        steps = np.rint(rows / scale)
        rounded: Array = np.clip(steps, -LARGEST - 1, LARGEST) * scale
        return rounded


def sample_columns(sites: Sequence[Site], count: int = _COLUMNS) -> Array:
    """Evenly spaced output channels of the weights that share one activation, float32 [K,C].

    Weights are read a block of channels at a time; no more of them is in memory.
    """
    share = -(-count // len(sites))
    return np.concatenate([_sampled(site, share) for site in sites]).T


def _sampled(site: Site, count: int) -> Array:
    """Evenly spaced output channels of one weight, float32 [C,K]."""
    if site.weight.const_value is None:
        raise ValueError(f"'{site.name}' has no constant weight")
    constant = Constant(site.weight.const_value, site.axis)
    chosen = evenly(constant.outer, count)
    parts = []
    for block in constant.blocks():
        first, last = np.searchsorted(chosen, (block.start, block.stop))
        parts.append(constant.read(block, EVERY)[chosen[first:last] - block.start])
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class _Rounding:
    """How what meets in a product is rounded, while it is judged.

    Attributes:
        grid: Of weights; activations have one of the same kind.
        block: Channels of one token that have a range of their own, 0 for all of them; None for
            one range for everything.
    """

    grid: Grid
    block: int | None

    @property
    def margins(self) -> tuple[float, ...]:
        """What to widen ranges by; one that is taken from the token itself needs no margin."""
        return _MARGINS if self.block is None else (1.0,)

    def weights(self, columns: Array) -> Array:
        """Weights [K,C] as they are rounded."""
        return self.grid.rounded(columns.T).T

    def activations(self, rows: Array, largest: float) -> list[Array]:
        """Rows [R,K] as they are rounded, for each margin around `largest`."""
        if self.block is not None:
            return [Grid(8, self.block).rounded(rows)]
        is_float = self.grid.is_float
        return [Fit(largest * m, is_float=is_float).rounded(rows) for m in self.margins]


def fit(seen: Seen, columns: Array, grid: Grid, *, smooth: bool, block: int | None = None) -> Fit:
    """Choose strength and margin of one activation.

    Args:
        seen: What calibration saw of it.
        columns: Output channels of the weights that it meets, [K,C].
        grid: Of these weights; the activation gets one of the same kind, int8 or E4M3.
        smooth: Whether its channels may be divided by factors.
        block: Channels of one token that have a range of their own, 0 for all of them; None for
            one range for everything.
    """
    rounding = _Rounding(grid, block)
    plain, error, margin = 0.0, *_judge(seen, columns, 0.0, rounding)
    strength = plain
    for candidate in _STRENGTHS if smooth else ():
        found, its_margin = _judge(seen, columns, candidate, rounding)
        if found < error * (_WORTHWHILE if strength == plain else 1.0):
            strength, error, margin = candidate, found, its_margin
    factors = _factors(seen.largest, columns, strength)
    largest = float((seen.largest / factors).max()) * margin
    return Fit(largest, factors if strength else None, error, strength, grid.is_float)


def with_error(fit: Fit, seen: Seen, columns: Array, grid: Grid) -> Fit:
    """The same fit with its error on what was seen, for a range that came from elsewhere."""
    weights = columns if fit.factors is None else columns * fit.factors[:, None]
    rounded = _Rounding(grid, None).weights(weights)
    rows = np.concatenate([seen.even.rows, seen.odd.rows])
    exact = rows @ columns
    divided = rows if fit.factors is None else rows / fit.factors
    moved = np.square(fit.rounded(divided) @ rounded - exact).sum(axis=1)
    error = float(np.sqrt(np.minimum(moved / _sizes(exact), 1).mean()))
    return dataclasses.replace(fit, error=error)


def product_error(seen: Seen, columns: Array, grid: Grid) -> float:
    """Relative error of products whose weights are rounded and whose activation is not.

    Args:
        seen: What calibration saw of the activation.
        columns: Output channels of the weights that it meets, [K,C].
        grid: Of these weights.
    """
    rows = np.concatenate([seen.even.rows, seen.odd.rows])
    exact = rows @ columns
    moved = np.square(rows @ _Rounding(grid, None).weights(columns) - exact).sum(axis=1)
    return float(np.sqrt((moved / _sizes(exact)).mean()))


def _factors(largest: Array, columns: Array, strength: float) -> Array:
    """s[k], geometric mean 1; a channel with next to nothing in it counts as a faint one."""
    if not strength or not largest.any() or not columns.any():
        return np.ones_like(largest)
    weights = np.abs(columns).max(axis=1)
    logs = strength * np.log(np.maximum(largest, _FAINT * largest.max()))
    logs -= (1 - strength) * np.log(np.maximum(weights, _FAINT * weights.max()))
    factors: Array = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def _judge(seen: Seen, columns: Array, strength: float, rounding: _Rounding) -> tuple[float, float]:
    """Error of the best margin at `strength`, and that margin."""
    squares = np.zeros(len(rounding.margins))
    for learnt, judged in seen.folds:
        factors = _factors(learnt.largest, columns, strength)
        largest = float((learnt.largest / factors).max())
        found = _squared_errors(judged.rows, columns, factors, largest, rounding)
        squares += found / len(seen.folds)
    best = int(squares.argmin())
    return float(np.sqrt(squares[best])), rounding.margins[best]


def _squared_errors(
    rows: Array, columns: Array, factors: Array, largest: float, rounding: _Rounding
) -> Array:
    """Mean over rows of the squared relative error of the products, for each margin; at most 1."""
    weights = rounding.weights(columns * factors[:, None])
    exact = rows @ columns
    sizes = _sizes(exact)
    tried = rounding.activations(rows / factors, largest)
    moved = [np.square(rounded @ weights - exact).sum(axis=1) / sizes for rounded in tried]
    # a row that is lost is lost, and cannot get worse
    return np.array([float(np.minimum(share, 1).mean()) for share in moved])


def _sizes(rows: Array) -> Array:
    """Squared norm of each row; 1 where that is nothing."""
    sizes: Array = np.square(rows).sum(axis=1)
    return np.where(sizes == 0, 1, sizes)
