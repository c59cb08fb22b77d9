"""Operators that move data and compute nothing, followed by moving the tokens' places with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from optc.ir.constants import constant
from optc.ir.places import Mixes, Places, Room, joined, narrow, still
from optc.ir.probe import ProbeFailure

__all__ = ["MOVES", "Given", "Made", "Rule"]

Given = list[Places | None]
"""The places of each operand; None for one that depends on no token."""
Made = list[Places] | Places | None
"""Places of the outputs, or one for all of them; None if the rule does not know."""
Rule = Callable[[ir.Node, Given, Room], Made]

_TARGETS = {"ScatterElements", "ScatterND"}

_OWN_TABLE = "it reads a table that is as long as the call"


def _carried(node: ir.Node, given: Given, room: Room) -> Made:
    """Move the places as the node moves the data."""
    moved = [0, 2] if node.op_type in _TARGETS else [0]
    moved = list(range(len(given))) if node.op_type == "Concat" else moved
    if any(part is not None for i, part in enumerate(given) if i not in moved):
        return None
    feeds = {}
    for index in moved:
        value = node.inputs[index]
        shape = room.shape(value)
        if value is None or shape is None:
            return None
        part = given[index]
        feeds[value] = np.broadcast_to(part if part is not None else np.int64(-1), shape)
    try:
        return [narrow(room.probe.run(output, feeds)) for output in node.outputs]
    except ProbeFailure:
        return None


def _reshaped(node: ir.Node, given: Given, room: Room) -> Made:
    """Elements stay in their order."""
    before, after = room.shape(node.inputs[0]), room.shape(node.outputs[0])
    places = given[0]
    if places is None or any(part is not None for part in given[1:]):
        return None
    if before is None or after is None or np.prod(before) != np.prod(after):
        return None
    return narrow(np.broadcast_to(places, before).reshape(after))


def _transposed(node: ir.Node, given: Given, room: Room) -> Made:
    places = given[0]
    assert places is not None
    perm = node.attributes.get_ints("perm", tuple(reversed(range(places.ndim))))
    return places.transpose(tuple(perm))


def _cut(node: ir.Node, given: Given, room: Room) -> Made:
    """Cut along axes that hold no tokens, or see which tokens are left."""
    places, axes = given[0], _axes(node)
    if places is None or any(part is not None for part in given[1:]):
        return None
    if axes is None or any(places.shape[axis] != 1 for axis in axes):
        return _carried(node, given, room)
    return places


def _concatenated(node: ir.Node, given: Given, room: Room) -> Made:
    axis = node.attributes["axis"].as_int()
    if any(part is not None and part.shape[axis] != 1 for part in given):
        return _carried(node, given, room)
    return joined(*given)


def _axes(node: ir.Node) -> list[int] | None:
    """The axes that a `Slice` or `Split` cuts, if they are constant."""
    if node.op_type == "Split":
        return [node.attributes.get_int("axis", 0)]
    content = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    return None if content is None else [int(axis) for axis in content.reshape(-1)]


def _gathered(node: ir.Node, given: Given, room: Room) -> Made:
    """Rows of a table chosen by tokens; or entries of tokens, or tokens, chosen by constants."""
    data, index = given[0], given[1]
    rank, chosen = room.rank(node.inputs[0]), room.rank(node.inputs[1])
    if rank is None or (data is not None and index is not None):
        return None
    axis = node.attributes.get_int("axis", 0) % rank
    if data is None and index is not None:
        if axis in room.runs(node.inputs[0]):
            raise Mixes(_OWN_TABLE)
        return index.reshape((1,) * axis + index.shape + (1,) * (rank - axis - 1))
    if data is None or data.shape[axis] != 1 or chosen is None:
        return _carried(node, given, room)
    return data.reshape(data.shape[:axis] + (1,) * chosen + data.shape[axis + 1 :])


def _by_elements(node: ir.Node, given: Given, room: Room) -> Made:
    """`GatherElements` and `ScatterElements`: indices are as wide as data, but along one axis."""
    shapes = [room.shape(value) for value in node.inputs[:2]]
    axis = node.attributes.get_int("axis", 0)
    if shapes[0] is None or shapes[1] is None:
        return None
    axis %= len(shapes[0])
    alike = [a for i, a in enumerate(shapes[0]) if i != axis]
    if alike == [a for i, a in enumerate(shapes[1]) if i != axis]:
        joint = joined(*given)
        if joint.shape[axis] == 1:
            return joint
    return _placed(node, given, room)


def _placed(node: ir.Node, given: Given, room: Room) -> Made:
    """Constants say what goes where."""
    combined = node.attributes.get_string("reduction", "none") != "none"
    return None if combined else _carried(node, given, room)


def _picked(node: ir.Node, given: Given, room: Room) -> Made:
    """Parts of a table, such as experts' weights, chosen by tokens."""
    data, index = given[0], given[1]
    rank, shape = room.rank(node.inputs[0]), room.shape(node.inputs[1])
    if data is not None or index is None:
        return _placed(node, given, room)
    if rank is None or shape is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    if not room.runs(node.inputs[0]).isdisjoint(range(shape[-1])):
        raise Mixes(_OWN_TABLE)
    return still(index, [-1]).reshape(index.shape[:-1] + (1,) * (rank - shape[-1]))


def _one_hot(node: ir.Node, given: Given, room: Room) -> Made:
    index = given[0]
    if index is None or any(part is not None for part in given[1:]):
        return None
    axis = node.attributes.get_int("axis", -1) % (index.ndim + 1)
    return np.expand_dims(index, axis)


def _sorted(node: ir.Node, given: Given, room: Room) -> Made:
    """The best entries along an axis: a choice among one token's own."""
    places = given[0]
    if places is None or given[1] is not None:
        return None
    return still(places, [node.attributes.get_int("axis", -1)])


MOVES: dict[str, Rule] = {
    "Concat": _concatenated,
    "Flatten": _reshaped,
    "Gather": _gathered,
    "GatherElements": _by_elements,
    "GatherND": _picked,
    "OneHot": _one_hot,
    "Reshape": _reshaped,
    "ScatterElements": _by_elements,
    "ScatterND": _placed,
    "Slice": _cut,
    "Split": _cut,
    "Squeeze": _reshaped,
    "Tile": _carried,
    "TopK": _sorted,
    "Transpose": _transposed,
    "Unsqueeze": _reshaped,
}
