"""Operators that are known to act on each token alone, or to leave tokens apart along an axis.

Whatever is not here is tried out (`optc.ir.place_trials`): a missing rule costs time, never truth.
Source of what operators do: the ONNX operator specification, opset 24; for `com.microsoft`, ONNX
Runtime's list of contrib operators.
"""

from __future__ import annotations

import string

import numpy as np
import onnx_ir as ir

from optc.ir.constants import constant
from optc.ir.elementwise import ELEMENTWISE
from optc.ir.flash_attention import DOMAIN, INPUTS
from optc.ir.place_moves import MOVES, Given, Made, Rule
from optc.ir.places import Mixes, Places, Room, joined, still, widened

__all__ = ["rule_of"]

_CONTRIB = "com.microsoft"
_ALONG_AXIS = ["CumProd", "CumSum", "Hardmax", "LogSoftmax", "LpNormalization", "Softmax"]
_FROM_AXIS = ["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"]
# fmt: off
_REDUCING = [
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
]
# fmt: on


def rule_of(node: ir.Node) -> Rule | None:
    """The rule for an operator; None if there is none."""
    return _RULES.get((node.domain, node.op_type))


def _elementwise(node: ir.Node, given: Given, room: Room) -> Made:
    rank = room.rank(node.outputs[0])
    room.broadcast(node.outputs[0], *(room.shape(v) for v in node.inputs if v is not None))
    return None if rank is None else widened(joined(*given), rank)


def _expanded(node: ir.Node, given: Given, room: Room) -> Made:
    rank = room.rank(node.outputs[0])
    return None if given[1] is not None or rank is None else widened(joined(given[0]), rank)


def _dropout(node: ir.Node, given: Given, room: Room) -> Made:
    """Nothing is dropped outside of training."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    content = constant(training)
    off = training is None or (content is not None and not content.any())
    return given[0] if off else None


def _along_axis(node: ir.Node, given: Given, room: Room) -> Made:
    axis: int | None = node.attributes.get_int("axis", -1)
    if node.op_type in {"CumSum", "CumProd"}:
        content = constant(node.inputs[1])
        axis = int(content.reshape(())) if content is not None else None
    return still(given[0], [axis]) if axis is not None else None


def _from_axis(node: ir.Node, given: Given, room: Room) -> Made:
    """A norm over the last axes, with constant weights."""
    places = given[0]
    if places is None or any(part is not None for part in given[1:]):
        return None
    first = node.attributes.get_int("axis", -1) % places.ndim
    return still(places, range(first, places.ndim))


def _over_axes(node: ir.Node, given: Given, room: Room) -> Made:
    axes = node.attributes.get_ints("axes", [0, 2, 3])
    return still(given[0], axes)


def _reduced(node: ir.Node, given: Given, room: Room) -> Made:
    places = given[0]
    chosen = node.inputs[1] if len(node.inputs) > 1 else None
    content = constant(chosen)
    if places is None or (chosen is not None and content is None):
        return None
    axes = [] if content is None else [int(axis) % places.ndim for axis in content.reshape(-1)]
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return places
    return _without(node, places, axes or list(range(places.ndim)))


def _best(node: ir.Node, given: Given, room: Room) -> Made:
    places = given[0]
    assert places is not None
    return _without(node, places, [node.attributes.get_int("axis", 0) % places.ndim])


def _without(node: ir.Node, places: Places, axes: list[int]) -> Places:
    places = still(places, axes)
    return places if node.attributes.get_int("keepdims", 1) != 0 else places.squeeze(tuple(axes))


def _fixed_scales(node: ir.Node, given: Given, room: Room) -> Made:
    return given[0] if all(part is None for part in given[1:]) else None


def _last_axis(node: ir.Node, given: Given, room: Room) -> Made:
    """What turns or multiplies the last axis by constants."""
    made = _fixed_scales(node, given, room)
    return still(given[0], [-1]) if made is not None else None


def _rotated(node: ir.Node, given: Given, room: Room) -> Made:
    """ONNX Runtime's own rotation, which counts by itself unless it is told every position."""
    if room.rank(node.inputs[1]) != 2:
        raise Mixes("it counts positions by itself")
    return _last_axis(node, given, room)


def _skip_norm(node: ir.Node, given: Given, room: Room) -> Made:
    """A norm over the last axis of a sum."""
    return still(joined(*given[:2]), [-1]) if all(p is None for p in given[2:]) else None


def _product(node: ir.Node, given: Given, room: Room) -> Made:
    quantized = node.op_type == "QLinearMatMul"
    at = (0, 3) if quantized else (0, 1)
    if any(part is not None for i, part in enumerate(given) if i not in at):
        return None
    ranks, rank = [room.rank(node.inputs[i]) for i in at], room.rank(node.outputs[0])
    left, right = (given[i] for i in at)
    if None in ranks or rank is None:
        return None
    left = left.reshape(1, -1) if left is not None and left.ndim == 1 else left
    right = right.reshape(-1, 1) if right is not None and right.ndim == 1 else right
    made = joined(still(left, [-1]), still(right, [-2]))
    shapes = [room.shape(node.inputs[i]) for i in at]
    if shapes[0] is not None and shapes[1] is not None and len(shapes[1]) == 2:
        room.broadcast(node.outputs[0], (*shapes[0][:-1], shapes[1][1]))
    made = made.squeeze(-1) if ranks[1] == 1 else made
    made = made.squeeze(-1 if ranks[1] == 1 else -2) if ranks[0] == 1 else made
    return widened(made, rank)


def _pointwise(node: ir.Node, given: Given, room: Room) -> Made:
    """A convolution whose kernel covers one element is a product over channels."""
    shapes = [room.shape(value) for value in node.inputs[:2]]
    if given[0] is None or any(part is not None for part in given[1:]):
        return None
    if shapes[0] is None or shapes[1] is None:
        return None
    steps = node.attributes.get_ints("strides", [])
    pads = node.attributes.get_ints("pads", [])
    if {*shapes[1][2:], *steps} != {1} or any(pads):
        return None
    room.broadcast(node.outputs[0], (shapes[0][0], shapes[1][0], *shapes[0][2:]))
    return still(given[0], [1])


def _affine(node: ir.Node, given: Given, room: Room) -> Made:
    left, right, added = [*given, None][:3]
    if left is not None and node.attributes.get_int("transA", 0) != 0:
        left = left.T
    if right is not None and node.attributes.get_int("transB", 0) != 0:
        right = right.T
    return widened(joined(still(left, [1]), still(right, [0]), added), 2)


def _einsum(node: ir.Node, given: Given, room: Room) -> Made:
    """Letters that the result does not have are summed over."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, result = equation.partition("->")
    rank = room.rank(node.outputs[0])
    if not arrow or rank is None:
        return None
    unused = "".join(c for c in string.ascii_letters if c not in equation)
    result = result.replace("...", unused[: rank - len(result.replace("...", ""))])
    dots = len([c for c in result if c in unused])
    parts: list[Places] = []
    for letters, places in zip(left.split(","), given, strict=True):
        if places is None:
            continue
        own = places.ndim - len(letters.replace("...", ""))
        names = letters.replace("...", unused[dots - own : dots])
        if len(set(names)) != len(names):
            return None
        places = still(places, [i for i, c in enumerate(names) if c not in result])
        sizes = dict(zip(names, places.shape, strict=True))
        order = [names.index(c) for c in result if c in names]
        rest = [i for i in range(places.ndim) if i not in order]
        turned = places.transpose([*order, *rest])
        parts.append(turned.reshape([sizes.get(c, 1) for c in result]))
    return joined(*parts)


def _attention(node: ir.Node, given: Given, room: Room) -> Made:
    """Our own attention, which reads other tokens' keys and values from a cache.

    Tokens have to be where it looks for them: along the third axis, all and in order. What hides
    keys is looked at elsewhere (`optc.ir.position_masks`).
    """
    rows = [_rows(part, room) for part in given[:3] if part is not None]
    joined(*rows)
    if given[INPUTS.index("query")] is None:
        raise Mixes("its queries are no tokens")
    return given[0]


def _rows(places: Places, room: Room) -> Places:
    elsewhere = "its tokens are not along the third axis, or not all of them"
    if places.ndim != 4:
        raise Mixes(elsewhere)
    rows = places[:, :1, :1, :1] // room.tokens
    wanted = rows * room.tokens + np.arange(room.tokens).reshape(-1, 1)
    if not np.array_equal(places, wanted):
        raise Mixes(elsewhere)
    return rows


_RULES: dict[tuple[str, str], Rule] = {("", name): rule for name, rule in MOVES.items()}
_RULES |= {("", name): _elementwise for name in ELEMENTWISE}
_RULES |= {("", name): _along_axis for name in _ALONG_AXIS}
_RULES |= {("", name): _from_axis for name in _FROM_AXIS}
_RULES |= {("", name): _reduced for name in _REDUCING}
_RULES |= {
    (DOMAIN, "FlashAttention"): _attention,
    ("", "ArgMax"): _best,
    ("", "ArgMin"): _best,
    ("", "Conv"): _pointwise,
    ("", "DequantizeLinear"): _fixed_scales,
    ("", "Dropout"): _dropout,
    ("", "Einsum"): _einsum,
    ("", "Expand"): _expanded,
    ("", "Gemm"): _affine,
    ("", "MatMul"): _product,
    ("", "MatMulInteger"): _product,
    ("", "MeanVarianceNormalization"): _over_axes,
    ("", "QLinearMatMul"): _product,
    ("", "QuantizeLinear"): _fixed_scales,
    ("", "RotaryEmbedding"): _last_axis,
    (_CONTRIB, "BiasGelu"): _elementwise,
    (_CONTRIB, "FastGelu"): _elementwise,
    (_CONTRIB, "Gelu"): _elementwise,
    (_CONTRIB, "MatMulNBits"): _last_axis,
    (_CONTRIB, "QuickGelu"): _elementwise,
    (_CONTRIB, "RotaryEmbedding"): _rotated,
    (_CONTRIB, "SkipLayerNormalization"): _skip_norm,
    (_CONTRIB, "SkipSimplifiedLayerNormalization"): _skip_norm,
}
