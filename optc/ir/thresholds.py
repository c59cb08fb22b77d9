"""Lengths at which a mask is worth evaluating: past every threshold that its sub-graph holds."""

from __future__ import annotations

from collections.abc import Container, Sequence

import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import constant, scalar
from optc.ir.probe import Probe, ProbeFailure, ancestors

__all__ = ["HIDDEN", "Sizes", "counts_past_thresholds"]

Sizes = dict[str, int]
HIDDEN = -1e4  # additive masks use -inf, finfo.min, or -10000 in older exports
_LARGEST_COUNT = 8200
_FEW = 8  # elements of a value that may be a threshold
_ENDLESS = 2**30  # from here on a number means "to the end"


def counts_past_thresholds(
    model: ir.Model, mask: ir.Value, small: Sequence[Sizes], data: Container[ir.Value]
) -> list[int]:
    """Counts just past every whole number that the sub-graph compares with.

    A threshold is any small value that is the same at two lengths, written or computed. The last
    count is past their sum, for thresholds that are taken one after the other.

    Args:
        model: The model.
        mask: The mask.
        small: Sizes at two small lengths.
        data: Inputs whose contents are not sizes.

    Raises:
        ProbeFailure: A threshold is larger than what is evaluated here.
    """
    found: set[int] = set()
    probes = [Probe(model, sizes) for sizes in small]
    for value in ancestors(mask):
        if value not in data and not _is_fill(value):
            found |= _whole_numbers(probes, value)
    if found and max(found) > _LARGEST_COUNT:
        raise ProbeFailure(f"its sub-graph holds {max(found)}, too large a length to try")
    together = min(sum(found), _LARGEST_COUNT)
    return sorted({n + 2 for n in [*sorted(found)[-3:], together] if n})


def _is_fill(value: ir.Value) -> bool:
    """A large number that is put in the place of hidden scores, and compared with nothing."""
    number = scalar(value)
    if number is None or abs(number) < -HIDDEN or value.dtype == ir.DataType.INT64:
        return False
    return {use.node.op_type for use in value.uses()} <= {"Mul", "Where"}


def _whole_numbers(probes: Sequence[Probe], value: ir.Value) -> set[int]:
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
    return {int(n) for n in numbers if 2 <= n < _ENDLESS and n == int(n)}
