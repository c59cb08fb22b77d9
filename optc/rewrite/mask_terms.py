"""Take a mask apart into the masks that it is made of.

    And(a, b), Add(a, b), Where(a, 0, -inf), Not(Or(a, b)), (1 - a) * -10000, Expand(a, ..)

Each part can then be read on its own: a causal part becomes an attribute although a padding part,
which depends on data, is left.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.ir.bands import visible_part
from optc.ir.constants import constant, scalar
from optc.ir.thresholds import HIDDEN
from optc.rewrite.scores import MaskTerm

__all__ = ["split_mask"]


def split_mask(term: MaskTerm) -> list[MaskTerm]:
    """The masks that one mask is made of, one level deep; none where it has no parts."""
    node = term.value.producer()
    if node is None or node.domain:
        return []
    boolean = term.value.dtype == ir.DataType.BOOL
    parts = _parts_of_boolean(term, node) if boolean else _parts_of_bias(term, node)
    return parts or []


def _parts_of_boolean(term: MaskTerm, node: ir.Node) -> list[MaskTerm] | None:
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "Not":
        return [dataclasses.replace(term, value=inputs[0], negated=not term.negated)]
    if node.op_type == ("Or" if term.negated else "And"):
        return [dataclasses.replace(term, value=v) for v in inputs]
    if node.op_type in {"Identity", "Expand"} and _keeps_rank(node):
        return [dataclasses.replace(term, value=inputs[0])]
    if node.op_type == "Cast" and inputs[0].dtype == ir.DataType.BOOL:
        return [dataclasses.replace(term, value=inputs[0])]
    return None


def _parts_of_bias(term: MaskTerm, node: ir.Node) -> list[MaskTerm] | None:
    inputs = [v for v in node.inputs if v is not None]
    if (
        node.op_type == "Add"
        and len(inputs) == 2
        and None is scalar(inputs[0]) is scalar(inputs[1])
    ):
        return [dataclasses.replace(term, value=v) for v in inputs]
    if node.op_type == "Where" and term.factor > 0:
        return _parts_of_where(term, node)
    if node.op_type == "Mul" and term.factor > 0:
        return _parts_of_scaled_mask(term, inputs)
    if node.op_type in {"Identity", "Expand"} and _keeps_rank(node):
        return [dataclasses.replace(term, value=inputs[0])]
    if (
        node.op_type == "Cast"
        and inputs[0].dtype is not None
        and inputs[0].dtype.is_floating_point()
    ):
        return [dataclasses.replace(term, value=inputs[0])]
    return None


def _parts_of_where(term: MaskTerm, node: ir.Node) -> list[MaskTerm] | None:
    """`Where(visible, bias, hidden)`, either way round; the bias may be zero."""
    condition, first, second = node.inputs
    if condition is None:
        return None
    for bias, fill, negated in ((first, second, False), (second, first, True)):
        hidden = _hidden_everywhere(fill)
        if hidden is None or bias is None:
            continue
        if hidden * term.factor > HIDDEN:
            return None
        finite = bool(np.isfinite(hidden)) and (term.finite or term.guarded)
        mask = dataclasses.replace(
            term, value=condition, negated=negated, finite=finite, factor=1.0
        )
        if scalar(bias) == 0.0:
            return [mask]
        return [mask, dataclasses.replace(term, value=bias)]
    return None


def _parts_of_scaled_mask(term: MaskTerm, inputs: list[ir.Value]) -> list[MaskTerm] | None:
    """`(1 - visible) * -10000`, with `visible` cast from a boolean."""
    for kept, number in (inputs, inputs[::-1]):
        hidden = _hidden_everywhere(number)
        rest = kept.producer()
        if hidden is None or rest is None:
            continue
        negated = rest.op_type != "Sub"
        source = _boolean_behind(kept) if negated else _boolean_behind(rest.inputs[1])
        if source is None or (not negated and scalar(rest.inputs[0]) != 1.0):
            return None
        if hidden * term.factor > HIDDEN:
            return None
        finite = bool(np.isfinite(hidden)) and (term.finite or term.guarded)
        return [dataclasses.replace(term, value=source, negated=negated, finite=finite, factor=1.0)]
    return None


def _boolean_behind(value: ir.Value | None) -> ir.Value | None:
    """The boolean that was cast to numbers."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Cast" or node.inputs[0] is None:
        return None
    return node.inputs[0] if node.inputs[0].dtype == ir.DataType.BOOL else None


def _hidden_everywhere(value: ir.Value | None) -> float | None:
    """The fill of a constant that hides, whatever is added to it; None for another value."""
    array = constant(value)
    if array is None or array.dtype.kind != "f" or not array.size:
        return None
    part = visible_part(np.atleast_1d(array))
    hides = part is not None and not part.any()
    return float(array.max()) if hides else None


def _keeps_rank(node: ir.Node) -> bool:
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return False
    return len(before.shape) == len(after.shape) and len(before.shape) >= 2
