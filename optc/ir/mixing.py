"""Does anything but attention look at other tokens?

With a cache, a call sees the new tokens only. Attention gets the old ones back from the cache; any
other operation over the sequence would see a part of it and compute something else.

Every value that depends on tokens is followed from the inputs on: which token each of its elements
belongs to (`optc.ir.places`), at a small number of tokens and at a larger one.

1. An operator that is known to act on each token alone, or along other axes, passes the places of
   its tokens on (`optc.ir.place_rules`, `optc.ir.place_moves`).
2. Any other is computed with one token's data changed at a time (`optc.ir.place_trials`).
3. It combines tokens if a part of its result belongs to two of them, or if what it gives for some
   tokens is not a part of what it gives for more.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx_ir as ir

from optc.ir.dependence import inputs_read, operands
from optc.ir.flash_attention import DOMAIN, INPUTS
from optc.ir.place_rules import rule_of
from optc.ir.place_trials import Untried, tried
from optc.ir.places import Mixes, Places, Room, each_once, is_chunk
from optc.ir.probe import Probe
from optc.ir.probe_sizes import probe_sizes

__all__ = ["Mixing", "mixing_nodes"]


@dataclasses.dataclass(frozen=True)
class Mixing:
    """A node that combines tokens, or may do so.

    Attributes:
        node: The node.
        reason: Why it cannot be cached, in words.
    """

    node: ir.Node
    reason: str


def mixing_nodes(model: ir.Model, sequence: str) -> list[Mixing]:
    """Nodes outside attention that combine data of several tokens, or may.

    What is computed from their results is not looked at.

    Args:
        model: The model, in topological order.
        sequence: Symbol of the number of tokens.
    """
    sources = {v: axis for v in model.graph.inputs if (axis := _alone(v, sequence)) is not None}
    if not sources:
        return []
    rooms = _rooms(model, sequence)
    for (value, axis), room in itertools.product(sources.items(), rooms):
        room.enter(value, axis)
    reads, wanted = inputs_read(model), _read_by_results(model)
    walk, lost, found = _Walk(rooms), set[ir.Value | None](), []
    for node in model.graph:
        if node not in wanted or sources.keys().isdisjoint(reads.get(node.outputs[0], ())):
            continue
        reason = "" if not lost.isdisjoint(_seen(node)) else walk.follow(node)
        if reason is None:
            continue
        lost |= set(node.outputs)
        found += [Mixing(node, reason)] if reason else []
    return found


def _alone(value: ir.Value, sequence: str) -> int | None:
    """The axis that is the sequence."""
    dims = value.shape if value.shape is not None else ()
    return next(
        (i for i, d in enumerate(dims) if isinstance(d, ir.SymbolicDim) and d.value == sequence),
        None,
    )


def _read_by_results(model: ir.Model) -> set[ir.Node]:
    """Nodes that results are computed from, but for what only masks of attention read.

    A mask that depends on data is refused by itself (`optc.rewrite.cache_positions`).
    """
    found = set[ir.Node]()
    stack = [value.producer() for value in model.graph.outputs]
    while stack:
        node = stack.pop()
        if node is None or node in found or node.graph is not model.graph:
            continue
        found.add(node)
        stack += [value.producer() for value in _seen(node) if value is not None]
    return found


def _seen(node: ir.Node) -> list[ir.Value | None]:
    """What a node reads as data, itself or in a graph of its own."""
    if (node.domain, node.op_type) != (DOMAIN, "FlashAttention"):
        return list(operands(node))
    return [value for i, value in enumerate(node.inputs) if i != INPUTS.index("mask")]


def _rooms(model: ir.Model, sequence: str) -> list[Room]:
    """Two numbers of tokens, neither like another size."""
    sizes = probe_sizes(model)
    taken = {d for n in model.graph for v in n.outputs if v.shape for d in v.shape}
    few = sizes[sequence]
    more = (n for n in itertools.count(2 * few + 1) if n not in taken | set(sizes.values()))
    return [Room(Probe(model, sizes | {sequence: n}), sequence) for n in (few, next(more))]


_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


class _Walk:
    """Follows the tokens through a model, node by node."""

    def __init__(self, rooms: list[Room]):
        self._rooms = rooms
        self._verdicts: dict[tuple[object, ...], bool] = {}

    def follow(self, node: ir.Node) -> str | None:
        """Note the places of a node's results; the reason where it combines tokens."""
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        try:
            if any(a.type in _GRAPHS for a in node.attributes.values()):
                raise Untried("it has a graph of its own")
            made = [_outputs(node, room) for room in self._rooms]
            for value, short, long in zip(node.outputs, *made, strict=True):
                if value.uses() or value.is_graph_output():
                    self._check(value, short, long)
        except Mixes as why:
            reason = f"this {name} combines tokens, which a cache hides"
            return f"{reason}: {why}" if str(why) else reason
        except Untried as why:
            return f"this {name} may combine tokens, which a cache hides: {why}"
        for room, places in zip(self._rooms, made, strict=True):
            room.places |= zip(node.outputs, places, strict=True)
        return None

    def _check(self, value: ir.Value, short: Places, long: Places) -> None:
        """See that a call with few tokens gives a part of what a call with many gives.

        Raises:
            Mixes: It does not; or an axis that is as long as the call holds no tokens.
        """
        key = short.shape, short.tobytes(), long.shape, long.tobytes()
        if key not in self._verdicts:  # most values are like many others
            counts = [room.tokens for room in self._rooms]
            self._verdicts[key] = is_chunk(short, long, counts)
        if not self._verdicts[key]:
            raise Mixes("")
        if value.is_graph_output() and not each_once(long):
            raise Mixes("a result has some of them more than once")
        few, many = (room.shape(value) or () for room in self._rooms)
        grown = [i for i, (a, b) in enumerate(zip(few, many, strict=False)) if a != b]
        if any(long.shape[axis] == 1 for axis in grown):
            raise Mixes("its result is as long as the call where it holds no tokens")


def _outputs(node: ir.Node, room: Room) -> list[Places]:
    given = [room.places.get(value) for value in node.inputs]
    rule = rule_of(node)
    made = rule(node, given, room) if rule is not None else None
    made = [made] * len(node.outputs) if isinstance(made, np.ndarray) else made
    if made is None or not all(map(_fits, made, map(room.shape, node.outputs))):
        return tried(node, given, room)
    return made


def _fits(places: Places, shape: tuple[int, ...] | None) -> bool:
    sizes = zip(places.shape, shape or (), strict=False)
    return shape is not None and len(shape) == places.ndim and all(p in (1, n) for p, n in sizes)
