"""The schemes: which grids a site may have, from the narrowest to the widest.

    int8          w8 per channel, activation int8, one range     wide: w8, activation in float
    int8-dynamic  w8 per channel, activation int8 per token      wide: w8, activation in float
    fp8           E4M3 per channel, activation E4M3, one range   wide: E4M3, activation in float
    w8            w8                                             wide: float
    int4          w4 in groups, zero points                      wide: w8

Tables and what is tied to them have a grid of their own (`int4`: 8 bits unless told otherwise).
"""

from __future__ import annotations

import collections
import dataclasses

from optc.rewrite.quant_grid import Grid

__all__ = ["SCHEMES", "Scheme", "limits_in_words"]

_FINE = 32
"""Group of 8-bit weights that meet a float activation on ONNX Runtime, whose kernel rounds the
activation in blocks of that many channels: short blocks are what keeps it exact."""

_DRIFT = 0.011
"""Nats. SmolLM2-135M in int8 then has a perplexity ratio of 1.010 to 1.012 and keeps 94 % of its
most likely tokens. Its 8-bit weights alone drift 0.002 to 0.007, which leaves room for the rest."""

_DRIFT_4 = 0.1
"""Nats. SmolLM2-135M in int4 drifts 0.05 to 0.07 in groups of 32 and 0.08 in groups of 128 with
everything narrow: a tighter limit would keep 8 bits where 4 were asked for."""

_DRIFT_E4M3 = 0.03
"""Nats. Three bits of mantissa err by up to 1/16 of a number, steps of int8 by 1/254 of the range.
Put between the two others; no model was measured."""

_ERROR, _ERROR_4 = 0.03, 0.1
"""Relative L2 errors. MiniLM in int8 then has embeddings with a cosine of 0.9996 to its own; with
0.1 it is 0.997. Rounding normal noise to 4 bits in groups of 32 changes it by 0.08 in itself."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What one scheme does.

    Attributes:
        name: As on the command line.
        narrow: Grid of a weight whose site is not kept wide.
        wide: Grid of one whose site is; None for float.
        table: Grid of tables, and of products that share theirs.
        rounding: How activations are rounded: `tensor`, `token`, or not at all (empty).
        max_drift: Limit of divergence where the user gives none.
        max_error: The same of the relative error of a graph without logits.
        block: Channels of a token that have a range of their own where it is rounded, by the graph
            or by the kernel; 0 for all of them, None where tokens have no ranges of their own.
    """

    name: str
    narrow: Grid
    wide: Grid | None
    table: Grid
    rounding: str = ""
    max_drift: float = _DRIFT
    max_error: float = _ERROR
    block: int | None = None

    @property
    def widest(self) -> str:
        """The widest grid of a weight, in words."""
        grid = self.wide or self.narrow
        return "E4M3" if grid.is_float else f"int{grid.bits}"

    @property
    def rounds_activations(self) -> bool:
        """Whether the graph rounds activations."""
        return bool(self.rounding)


def _eight(target: str) -> Grid:
    return Grid(8, group=_FINE if target == "ort" else 0)


def _int8(target: str, options: Grid, table: int) -> Scheme:
    return Scheme("int8", Grid(8), _eight(target), Grid(8), "tensor")


def _dynamic(target: str, options: Grid, table: int) -> Scheme:
    return Scheme("int8-dynamic", Grid(8), _eight(target), Grid(8), "token", block=0)


def _fp8(target: str, options: Grid, table: int) -> Scheme:
    grid = Grid(8, is_float=True)
    return Scheme("fp8", grid, grid, grid, "tensor", max_drift=_DRIFT_E4M3)


def _w8(target: str, options: Grid, table: int) -> Scheme:
    grid = Grid(8, options.group, options.symmetric)
    grid = grid if options.group else _eight(target)
    return Scheme("w8", grid, None, grid, block=_FINE if target == "ort" else None)


def _int4(target: str, options: Grid, table: int) -> Scheme:
    narrow = Grid(4, options.group or _FINE, options.symmetric)
    table_grid = narrow if table == 4 else _eight(target)
    return Scheme(
        "int4", narrow, _eight(target), table_grid, max_drift=_DRIFT_4, max_error=_ERROR_4
    )


SCHEMES = {
    "int8": _int8,
    "int8-dynamic": _dynamic,
    "w8": _w8,
    "int4": _int4,
    "fp8": _fp8,
}
"""Each scheme, made of the target's name, the grid that options ask for, and the table's bits."""


def limits_in_words(of: str) -> str:
    """What an attribute is in each scheme, the usual value last: `0.1 for int4, else 0.03`."""
    values = {name: getattr(make("", Grid(4), 8), of) for name, make in SCHEMES.items()}
    ((usual, _),) = collections.Counter(values.values()).most_common(1)
    rare = sorted(set(values.values()) - {usual}, reverse=True)
    named = [(" and ".join(n for n in values if values[n] == value), value) for value in rare]
    return ", ".join([*(f"{value:g} for {names}" for names, value in named), f"else {usual:g}"])
