"""Where tokens go in an operator that no rule knows: change one token's data, see what moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.places import Mixes, Places, Room, narrow
from optc.ir.probe import ProbeFailure

__all__ = ["Untried", "tried"]

_SEEDS = 2
_MOVES = (1.0, -1.0, 1e4, -1e4)
_NOISE = (0.01, 1.0, 100.0)
"""Added to the floats of a token, which are of size 1: one number to all, or noise, as norms hide
the first; what a maximum or a scale hides from small ones is seen with large ones."""
_WIDE, _NARROW = 3, 100
"""Drawn integers are smaller: those of 32 and 64 bits may be indices, those of 8 are quantized."""


class Untried(Exception):
    """An operator cannot be computed here; the text says why."""


def tried(node: ir.Node, given: Sequence[Places | None], room: Room) -> list[Places]:
    """Places of the outputs of a node, found by computing it with each token's data changed.

    Args:
        node: A node without subgraphs.
        given: Places of its operands; None for those that depend on no token.
        room: The number of tokens; learns the shapes of the outputs.

    Raises:
        Mixes: A part of the result moves with the data of two tokens.
        Untried: The node does not run, or nothing of the result moves.
    """
    key = _key(node, given, room)
    if key not in room.trials:
        room.trials[key] = _try(node, given, room)
    made = room.trials[key]
    room.shapes |= {v: p.shape for v, p in zip(node.outputs, made, strict=True) if p is not None}
    return [narrow(p if p is not None else np.full((1,), -1)) for p in made]


def _key(node: ir.Node, given: Sequence[Places | None], room: Room) -> tuple[object, ...]:
    """What the places follow from: the same for nodes that layers repeat, weights aside."""
    attributes = sorted(map(str, node.attributes.values()))
    operands = [
        (part.shape, part.tobytes(), room.shape(value), value and value.dtype)
        if part is not None
        else value
        for value, part in zip(node.inputs, given, strict=True)
    ]
    wanted = [bool(v.uses()) or v.is_graph_output() for v in node.outputs]
    return node.domain, node.op_type, *attributes, *operands, *wanted


def _try(node: ir.Node, given: Sequence[Places | None], room: Room) -> list[Places | None]:
    """The same, in full; None for results that nobody reads."""
    found: dict[ir.Value, Array] = {}
    outputs = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    if any(isinstance(value.type, (ir.SequenceType, ir.OptionalType)) for value in outputs):
        raise Untried("it gives no tensor")
    if any(room.runs(v) for v, part in zip(node.inputs, given, strict=True) if part is None):
        raise Untried("it reads a table that is as long as the call")
    try:
        for seed in range(_SEEDS):
            fed = _feeds(node, given, room, np.random.default_rng(seed))
            for output in outputs:
                base = room.probe.run(output, fed)
                places = found.setdefault(output, np.full(base.shape, -1))
                for place, feeds in _changed(node, given, fed):
                    _mark(places, place, base, room.probe.run(output, feeds))
    except ProbeFailure as failure:
        raise Untried(f"when it is tried out, {failure}") from failure
    if any((places < 0).all() for places in found.values()):
        raise Untried("nothing of its result moves with its data")
    return [found.get(value) for value in node.outputs]


def _mark(places: Array, place: int, base: Array, other: Array) -> None:
    if base.shape != other.shape or places.shape != base.shape:
        raise Mixes("the size of its result depends on data")
    moved = (base != other) & ~(_is_nan(base) & _is_nan(other))
    if (moved & (places >= 0) & (places != place)).any():
        raise Mixes("")
    places[moved] = place


def _is_nan(array: Array) -> Array:
    """Not a number, in types of 8 and 16 bits too, which `np.isnan` does not know."""
    return np.not_equal(array, array)


def _changed(
    node: ir.Node, given: Sequence[Places | None], fed: dict[ir.Value, Array]
) -> Iterator[tuple[int, dict[ir.Value, Array]]]:
    """Each place, with feeds in which the data there is another."""
    for value, part in zip(node.inputs, given, strict=True):
        if value is None or part is None:
            continue
        base = fed[value]
        full = np.broadcast_to(part, base.shape)
        for place in np.unique(part[part >= 0]).tolist():
            for other in _others(base):
                yield place, fed | {value: np.where(full == place, other, base)}


def _others(base: Array) -> list[Array]:
    """The same data, each number changed; small changes and large ones, up and down."""
    if base.dtype == np.bool_:
        return [~base]
    if base.dtype.kind in "iu":
        span = _span(base.dtype)
        return [((base.astype(np.int64) + n) % span).astype(base.dtype) for n in (1, 2, span // 2)]
    wide = base.astype(np.float64)
    noise = np.random.default_rng(base.size).standard_normal(base.shape)
    made = [wide + step for step in _MOVES] + [wide + noise * size for size in _NOISE]
    return [array.astype(base.dtype) for array in made]


def _span(dtype: np.dtype[np.generic]) -> int:
    return _NARROW if dtype.itemsize == 1 else _WIDE


def _feeds(
    node: ir.Node, given: Sequence[Places | None], room: Room, rng: np.random.Generator
) -> dict[ir.Value, Array]:
    """A content for every operand: that which it has, or one drawn where data decides."""
    fed: dict[ir.Value, Array] = {}
    for value, part in zip(node.inputs, given, strict=True):
        if value is None:
            continue
        try:
            fed[value] = _drawn(value, room, rng) if part is not None else room.probe.run(value)
        except ProbeFailure:
            fed[value] = _drawn(value, room, rng)
    return fed


def _drawn(value: ir.Value, room: Room, rng: np.random.Generator) -> Array:
    shape, dtype = room.shape(value), value.dtype
    if shape is None or dtype is None or dtype == ir.DataType.STRING:
        raise Untried(f"the shape or type of '{value.name}' is not known")
    if dtype == ir.DataType.BOOL:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.is_integer():
        return rng.integers(0, _span(dtype.numpy()), shape).astype(dtype.numpy())
    return rng.standard_normal(shape).astype(dtype.numpy())
