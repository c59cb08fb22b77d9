"""Numbers of tokens at which a value that depends on sizes may change its mind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import constant
from optc.ir.position_uses import SIZE_OPERANDS
from optc.ir.probe import Probe, ProbeFailure, ancestors

__all__ = ["ENDLESS", "FEW_ELEMENTS", "counts_to_try", "numbers_met"]

ENDLESS = 1 << 40
"""More tokens than there will be."""
FEW_ELEMENTS = 8
"""So many has what is compared with a count, at most."""

_SMALL = (1, 2, 3, 4, 7)  # one token is what every step of decoding has
_LADDER = tuple(1 << k for k in range(5, 18, 2))  # 32 .. 131072: past what changes once and for all
_MOST_NUMBERS = 16
_MOST_PAIRED = 5


def counts_to_try(
    model: ir.Model, value: ir.Value, fixed: Mapping[ir.Value | None, bool], limit: int
) -> list[int]:
    """Counts to evaluate a value at, in order.

    Args:
        model: The model.
        value: A value that depends on sizes only.
        fixed: What does so, see `optc.ir.probe.fixed_values`.
        limit: Tokens that a row can have.
    """
    numbers = numbers_met(model, value, fixed)
    around = {number + step for number in numbers for step in (-1, 0, 1)}
    pairs = list(itertools.combinations_with_replacement(numbers[:_MOST_PAIRED], 2))
    joint = {a * b for a, b in pairs} | {a + b for a, b in pairs}  # a block size times blocks
    joint = {n for n in joint if n <= _LADDER[-1]}
    return sorted(n for n in {*_SMALL, *_LADDER, *around, *joint, limit} if 0 < n < ENDLESS)


def numbers_met(
    model: ir.Model, value: ir.Value, fixed: Mapping[ir.Value | None, bool]
) -> list[int]:
    """Constants behind a value that meet what depends on sizes, and inverses of those below 1."""
    behind = ancestors(value)
    found: set[int] = set()
    for known in behind:
        if _meets_sizes(known, behind, fixed) and (content := _content(model, known, fixed)):
            found.update(content)
    return sorted(found)[:_MOST_NUMBERS]


def _meets_sizes(
    value: ir.Value, behind: set[ir.Value], fixed: Mapping[ir.Value | None, bool]
) -> bool:
    if fixed.get(value):
        return False
    return any(
        use.idx < SIZE_OPERANDS.get(use.node.op_type, len(use.node.inputs))
        and not behind.isdisjoint(use.node.outputs)
        and any(fixed.get(other) for other in use.node.inputs)
        for use in value.uses()
    )


def _content(model: ir.Model, value: ir.Value, fixed: Mapping[ir.Value | None, bool]) -> list[int]:
    array = constant(value)
    if array is None and value in fixed and len(value.shape or ()) <= 1:
        try:
            array = Probe(model, {}).run(value)
        except ProbeFailure:
            return []
    if array is None or array.size > FEW_ELEMENTS or array.dtype.kind not in "iuf":
        return []
    return list(_counts(array))


def _counts(array: Array) -> Iterator[int]:
    for number in np.abs(array.reshape(-1).astype(np.float64)):
        size = 1 / number if 0 < number < 1 else number
        if 1 < size < ENDLESS:
            yield int(np.ceil(size))
