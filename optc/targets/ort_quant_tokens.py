"""Recognise an activation that is rounded to int8 with a scale of its own for each token.

`s = Max(ReduceMax(Abs(x), axes=[-1]) / 127, tiny)`, `q = Cast(Round(x / s))`, `y = Cast(q) * s`.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.ir.constants import constant, scalar
from optc.targets.ort_quant_match import made_by

__all__ = ["Tokens", "rounded_tokens"]

_KEEP_ROWS = {"Max", "Min", "Mul", "Div", "Add", "Clip", "Cast", "Identity"}
_LAST = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """An activation on an int8 grid per token, and back.

    Attributes:
        source: The activation before rounding, float [..., K].
        scale: float [..., 1], positive.
        integers: int8 [..., K].
    """

    source: ir.Value
    scale: ir.Value
    integers: ir.Value


def rounded_tokens(node: ir.Node) -> Tokens | None:
    """The first input of `node`, if it is an activation that was rounded token by token."""
    product = made_by(node.inputs[0] if node.inputs else None, "Mul")
    if product is None:
        return None
    for one, other in (product.inputs, tuple(reversed(product.inputs))):
        integers = _cast_from_int8(one)
        source = None if integers is None else _divided_by(integers, other)
        if integers is not None and source is not None and other is not None and _is_column(other):
            return Tokens(source, other, integers)
    return None


def _cast_from_int8(value: ir.Value | None) -> ir.Value | None:
    """What `value` is the conversion of, if that is a conversion to int8."""
    back = made_by(value, "Cast")
    down = made_by(back.inputs[0], "Cast") if back is not None else None
    if back is None or down is None or down.attributes["to"].as_int() != int(ir.DataType.INT8):
        return None
    return back.inputs[0]


def _divided_by(integers: ir.Value, scale: ir.Value | None) -> ir.Value | None:
    """x, if `integers` = Cast(Round(x / scale))."""
    down = made_by(integers, "Cast")
    near = made_by(down.inputs[0], "Round") if down is not None else None
    ratio = made_by(near.inputs[0], "Div") if near is not None else None
    return ratio.inputs[0] if ratio is not None and ratio.inputs[1] is scale else None


def _is_column(value: ir.Value) -> bool:
    """Whether the last axis has one element: so it says, or so it was made."""
    if value.shape is not None and len(value.shape) > 0 and value.shape[-1] == 1:
        return True
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "ReduceMax":
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        keeps = node.attributes.get_int("keepdims", 1) == 1
        return keeps and axes is not None and axes.tolist() == [_LAST]
    if node.op_type not in _KEEP_ROWS:
        return False
    wide = [v for v in node.inputs if v is not None and scalar(v) is None]
    return len(wide) == 1 and wide[0] is not None and _is_column(wide[0])
