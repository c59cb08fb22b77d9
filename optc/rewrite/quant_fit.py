"""The 8-bit grid of one activation, and how much of its range to hand to the weights.

Per tensor, symmetric, int8: `x ~ scale * q`. A few channels far larger than the rest would waste
the grid of all others; dividing channel k by s[k] = |x|max^a / |w|max^(1-a), and multiplying row k
of the weights by it, leaves the product as it is and evens the channels out (SmoothQuant, Xiao et
al., 2022, arXiv 2211.10438).

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

__all__ = ["Fit", "fit", "judged", "sample_columns", "weight_error"]

LARGEST = 127
"""Last step of the int8 grid of activations."""

_LARGEST_E4M3 = 448
_STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
_MARGINS = (1.0, 1.15, 1.3)
_COLUMNS = 256
_FAINT = 1e-5
_WORTHWHILE = 0.9


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


def fit(seen: Seen, columns: Array, *, smooth: bool, block: int | None = None) -> Fit:
    """Choose strength and margin of one activation.

    Args:
        seen: What calibration saw of it.
        columns: Output channels of the weights that it meets, [K,C].
        smooth: Whether its channels may be divided by factors.
        block: Channels of one token that have a range of their own, 0 for all of them; None for
            one range for everything.
    """
    plain, error, margin = 0.0, *_judge(seen, columns, 0.0, block)
    strength = plain
    for candidate in _STRENGTHS if smooth else ():
        found, its_margin = _judge(seen, columns, candidate, block)
        if found < error * (_WORTHWHILE if strength == plain else 1.0):
            strength, error, margin = candidate, found, its_margin
    factors = _factors(seen.largest, columns, strength)
    largest = float((seen.largest / factors).max()) * margin
    return Fit(largest, factors if strength else None, error, strength)


def judged(fit: Fit, seen: Seen, columns: Array) -> Fit:
    """The same fit with its error on what was seen, for a range that came from elsewhere."""
    weights = columns if fit.factors is None else columns * fit.factors[:, None]
    rounded = _rounded_columns(weights)
    rows = np.concatenate([seen.even.rows, seen.odd.rows])
    exact = rows @ columns
    divided = rows if fit.factors is None else rows / fit.factors
    moved = np.square(fit.rounded(divided) @ rounded - exact).sum(axis=1)
    error = float(np.sqrt(np.minimum(moved / _sizes(exact), 1).mean()))
    return dataclasses.replace(fit, error=error)


def weight_error(seen: Seen, columns: Array) -> float:
    """Relative error of products whose weights are int8 and whose activation is not.

    Args:
        seen: What calibration saw of the activation.
        columns: Output channels of the weights that it meets, [K,C].
    """
    rows = np.concatenate([seen.even.rows, seen.odd.rows])
    exact = rows @ columns
    moved = np.square(rows @ _rounded_columns(columns) - exact).sum(axis=1)
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


def _judge(seen: Seen, columns: Array, strength: float, block: int | None) -> tuple[float, float]:
    """Error of the best margin at `strength`, and that margin."""
    margins = _MARGINS if block is None else (1.0,)
    squares = np.zeros(len(margins))
    for learnt, judged in seen.folds:
        factors = _factors(learnt.largest, columns, strength)
        largest = float((learnt.largest / factors).max())
        found = _squared_errors(judged.rows, columns, factors, largest, block)
        squares += found / len(seen.folds)
    best = int(squares.argmin())
    return float(np.sqrt(squares[best])), margins[best]


def _squared_errors(
    rows: Array, columns: Array, factors: Array, largest: float, block: int | None
) -> Array:
    """Mean over rows of the squared relative error of the products, for each margin; at most 1."""
    weights = _rounded_columns(columns * factors[:, None])
    exact = rows @ columns
    sizes = _sizes(exact)
    divided = rows / factors
    if block is None:
        tried = [Fit(largest * margin).rounded(divided) for margin in _MARGINS]
    else:
        tried = [Grid(8, block).rounded(divided)]
    moved = [np.square(rounded @ weights - exact).sum(axis=1) / sizes for rounded in tried]
    # a row that is lost is lost, and cannot get worse
    return np.array([float(np.minimum(share, 1).mean()) for share in moved])


def _sizes(rows: Array) -> Array:
    """Squared norm of each row; 1 where that is nothing."""
    sizes: Array = np.square(rows).sum(axis=1)
    return np.where(sizes == 0, 1, sizes)


def _rounded_columns(columns: Array) -> Array:
    """Weights [K,C] on an int8 grid for each output channel."""
    return Grid(8).rounded(columns.T).T
