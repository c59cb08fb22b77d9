"""Lengths at which a mask is worth evaluating: where one that holds so far may stop to.

A mask is a band, or is none, only if it is so at every length. Lengths that could make a difference
come from the numbers in its sub-graph: written or computed ones, their sums, products and inverses
(a block size times a number of blocks), and the sizes of constant tables. Some lengths that nobody
asked for are tried as well. This is a search and no proof; the comparison with the original after
the pass is the second line.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator, Sequence

import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import constant, scalar
from optc.ir.probe import Probe, ProbeFailure, ancestors

__all__ = ["HIDDEN", "Sizes", "counts_past_thresholds", "with_other_rows"]

Sizes = dict[str, int]
HIDDEN = -1e4  # additive masks use -inf, finfo.min, or -10000 in older exports
_LARGEST_COUNT = 8200
_ALWAYS = (1, 2, 4, 7, 132, 517)
_CHEAP = 64  # up to here, a number and its neighbours are tried, not only what is past it
_MOST = 4  # of each kind, the largest
_SCALING = {"Div", "Mod", "Mul", "BitShift"}
_FEW = 8  # elements of a value that may be a threshold
_ENDLESS = 2**30  # from here on a number means "to the end"


def counts_past_thresholds(
    model: ir.Model, mask: ir.Value, small: Sequence[Sizes], data: Container[ir.Value]
) -> list[int]:
    """Counts just past every length at which the sub-graph may change its mind, and few tokens.

    Args:
        model: The model.
        mask: The mask.
        small: Sizes at two small lengths.
        data: Inputs whose contents are not sizes.

    Raises:
        ProbeFailure: A threshold is larger than what is evaluated here.
    """
    found: set[float] = set()
    tables: set[int] = set()
    probes = [Probe(model, sizes) for sizes in small]
    for value in ancestors(mask):
        if value in data or _is_fill(value):
            continue
        found |= _numbers(probes, value)
        tables |= _table_sizes(value)
    if found and max(found) > _LARGEST_COUNT:
        raise ProbeFailure(f"its sub-graph holds {max(found):g}, too large a length to try")
    single = sorted(math.ceil(n) for n in found)[-_MOST:]
    counts = {*single, min(math.ceil(sum(found)), _LARGEST_COUNT)}
    if _scales(mask):
        factors = {*found, *(1 / n for n in found if n < 1)}
        products = {math.ceil(a * b) for a in factors for b in factors if a >= 1}
        counts |= set(sorted(n for n in products if n <= _LARGEST_COUNT)[-_MOST:])
        counts |= {math.ceil(1 / n) for n in found if n < 1}
    whole = [n for n in tables if n <= _LARGEST_COUNT][:_MOST]
    near = {math.ceil(n) + step for n in found if n <= _CHEAP for step in (-1, 0, 1)}
    return sorted({*_ALWAYS, *(n for n in near if n > 0), *(n + 2 for n in counts if n), *whole})


def with_other_rows(
    model: ir.Model, mask: ir.Value, sizes: Sizes, own: Collection[str]
) -> Iterator[Sizes]:
    """The same sizes with others on the axes that the mask measures besides its own, such as rows.

    Args:
        model: The model.
        mask: The mask.
        sizes: Sizes of all axes.
        own: Symbols of the mask's own axes.
    """
    measured = [_measured(value) for value in ancestors(mask)]
    symbols = {s for shape in measured if shape is not None for s in shape.free_symbols()}
    # an axis as long as one of the mask's own, such as that of a padding mask, is no axis of rows
    lengths = {sizes[name] for name in own if name in sizes}
    other = sorted(s for s in symbols if s in sizes and sizes[s] not in lengths)
    numbers = {math.ceil(n) for v in ancestors(mask) for n in _numbers([Probe(model, sizes)], v)}
    near = {n + step for n in numbers if n <= _CHEAP for step in (-1, 0, 1)}
    for count in sorted({1, 2, 3, 5, *near} - {0}) if other else ():
        yield sizes | dict.fromkeys(other, count)


def _measured(value: ir.Value) -> ir.Shape | None:
    """The shape that a `Shape` or `Size` reads."""
    node = value.producer()
    if node is None or node.op_type not in {"Shape", "Size"} or node.inputs[0] is None:
        return None
    return node.inputs[0].shape


def _scales(mask: ir.Value) -> bool:
    """Whether something in the sub-graph is multiplied or divided."""
    producers = (value.producer() for value in ancestors(mask))
    return any(node is not None and node.op_type in _SCALING for node in producers)


def _table_sizes(value: ir.Value) -> set[int]:
    """How far a constant table goes: there its contents end, and its surprises."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size <= _FEW:
        return set()
    return {size for size in tensor.shape.numpy() if size > _FEW}


def _is_fill(value: ir.Value) -> bool:
    """A large number that is put in the place of hidden scores, and compared with nothing."""
    number = scalar(value)
    if number is None or abs(number) < -HIDDEN or value.dtype == ir.DataType.INT64:
        return False
    return {use.node.op_type for use in value.uses()} <= {"Mul", "Where"}


def _numbers(probes: Sequence[Probe], value: ir.Value) -> set[float]:
    """Numbers that are the same at both lengths."""
    contents: list[Array | None] = [constant(value)]
    if value.producer() is not None and contents[0] is None:
        if value.shape is not None and len(value.shape) > 1:
            return set()
        try:
            contents = [probe.run(value) for probe in probes]
        except ProbeFailure:
            return set()
    first, last = contents[0], contents[-1]
    if first is None or last is None or first.size > _FEW or first.dtype.kind not in "if":
        return set()
    if first.shape != last.shape or not (first == last).all():
        return set()
    numbers = [abs(float(n)) for n in first.reshape(-1) if n > HIDDEN]
    return {n for n in numbers if 0 < n < _ENDLESS and n != 1 and n > 1 / _LARGEST_COUNT}
