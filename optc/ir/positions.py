"""Where a graph takes token positions from, found by dataflow and checked by numbers.

An export without a cache counts positions from 0: some `Range` over the sequence feeds rotary
tables, position embeddings or biases, or a table of positions is cut to the length of the sequence.
With a cache, a token is at any position. A value p is a *source of positions* of a value v if it

* counts: it is `[1, .., S, .., 1]` and holds c, c+1, .. (c is often 0), or
* is cut from a table: it holds the first S rows of a constant,

and if v, computed from the numbers or rows of other positions instead, holds exactly the rows of
these positions of v for a longer sequence. The last condition is tested by evaluating both.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.draft import Draft
from optc.ir.position_uses import growing_axes
from optc.ir.probe import Probe, ProbeFailure, ancestors, fixed_values
from optc.ir.recount import TokenAxes
from optc.ir.streamed import read_tensor

__all__ = ["PositionSource", "Positions"]

_Places = tuple[int, ...]
# positions to try: near ones, and some behind the lengths at which models change their minds
_NEAR, _FAR = (4, 5, 6, 2, 3, 4), (140, 3, 131, 132, 0, 70)


@dataclasses.dataclass(frozen=True)
class PositionSource:
    """Where positions come from.

    Attributes:
        value: What counts, or is cut from a table.
        rank: Its rank.
        axis: Its axis over the sequence; all others have size 1 if it counts.
        first: What it counts from.
        table: The constant that it is cut from; None if it counts.
    """

    value: ir.Value
    rank: int
    axis: int
    first: int = 0
    table: ir.Value | None = None

    def at(self, positions: Array) -> Array:
        """What it holds for these positions.

        Raises:
            ProbeFailure: The table has no such rows.
        """
        if self.table is None:
            shape = [-1 if axis == self.axis else 1 for axis in range(self.rank)]
            dtype = self.value.dtype.numpy() if self.value.dtype else np.int64
            return (positions + self.first).astype(dtype).reshape(shape)
        table = _content(self.table)
        if table is None or positions.max() >= table.shape[self.axis]:
            raise ProbeFailure("its table of positions ends before")
        return np.take(table, positions, self.axis)

    def write(self, draft: Draft, positions: ir.Value) -> ir.Value:
        """Nodes that give the same.

        Args:
            draft: Where they go.
            positions: int64 [N].
        """
        if self.table is not None:
            return draft.node("Gather", [self.table, positions], self.value.dtype, axis=self.axis)
        if self.first:
            positions = draft.node("Add", [positions, draft.ints([self.first])])
        dtype = self.value.dtype or ir.DataType.INT64
        if dtype != ir.DataType.INT64:
            positions = draft.node("Cast", [positions], dtype, to=int(dtype))
        if self.rank == 1:
            return positions
        shape = draft.ints([-1 if axis == self.axis else 1 for axis in range(self.rank)])
        return draft.node("Reshape", [positions, shape], dtype)


class Positions:
    """Finds sources of positions in one model; what values share is evaluated once.

    Args:
        model: The model; not changed.
        axes: Axes of the token input.
    """

    def __init__(self, model: ir.Model, axes: TokenAxes):
        self.model = model
        self.axes = axes
        self._few = Probe(model, axes.sizes(len(_NEAR)))
        self._candidates: dict[ir.Value, PositionSource | None] = {}

    def sources(self, value: ir.Value, axis: int) -> tuple[PositionSource, ...] | str:
        """The sources of positions of one value.

        Args:
            value: A value that depends on sizes only.
            axis: Its axis over the sequence.

        Returns:
            The sources; none if the value is the same at every position, and nothing behind it
            counts; a sentence why not, otherwise.
        """
        wholes = self._wholes(value, axis)
        if isinstance(wholes, str):
            return wholes
        found = self._found(value)
        behind = {source: ancestors(source.value) - {source.value} for source in found}
        first = [s for s in found if not behind[s] & {other.value for other in found}]
        for chosen in dict.fromkeys([tuple(first), *((source,) for source in found)]):
            if all(self._follows(value, axis, chosen, *whole) for whole in wholes):
                return chosen
        if not found and all((whole == np.take(whole, [0], axis)).all() for _, whole in wholes):
            return ()
        return f"'{value.name}' depends on positions, and nothing that counts them gives it"

    def _wholes(self, value: ir.Value, axis: int) -> list[tuple[_Places, Array]] | str:
        """Positions to try, and the value for a sequence that reaches as far."""
        wholes: list[tuple[_Places, Array]] = []
        for positions in (_NEAR, _FAR):
            try:
                wholes.append((positions, self._whole(value, axis, positions)))
            except ProbeFailure as failure:
                if positions is _NEAR:  # else it is a table of few rows
                    problem = f"runs over the sequence and cannot be evaluated: {failure}"
                    return f"'{value.name}' {problem}"
        return wholes

    def _whole(self, value: ir.Value, axis: int, positions: _Places) -> Array:
        total = max(positions) + 2
        whole = Probe(self.model, self.axes.sizes(total)).run(value)
        if whole.shape[axis] != total:
            raise ProbeFailure("its length is not that of the sequence")
        return whole

    def _found(self, value: ir.Value) -> list[PositionSource]:
        """Ancestors that count or are cut from a table, in graph order."""
        fixed, reached = fixed_values(self.model), ancestors(value)
        found = []
        for node in self.model.graph:
            candidate = node.outputs[0]
            if candidate not in reached or not fixed.get(candidate):
                continue
            if candidate not in self._candidates:
                self._candidates[candidate] = self._candidate(node)
            source = self._candidates[candidate]
            found += [source] if source is not None else []
        return found

    def _candidate(self, node: ir.Node) -> PositionSource | None:
        value = node.outputs[0]
        try:
            content = self._few.run(value)
        except ProbeFailure:
            return None
        return _counting(value, content) or _cut(node, content)

    def _follows(
        self,
        value: ir.Value,
        axis: int,
        sources: tuple[PositionSource, ...],
        positions: _Places,
        whole: Array,
    ) -> bool:
        at = np.array(positions)
        try:
            moved = self._few.run(value, {s.value: s.at(at) for s in sources})
        except ProbeFailure:
            return False
        wanted = np.take(whole, at, axis)
        return moved.shape == wanted.shape and np.allclose(moved, wanted, rtol=1e-5, atol=1e-6)


def _counting(value: ir.Value, content: Array) -> PositionSource | None:
    count = len(_NEAR)
    if content.dtype.kind not in "iuf" or content.size != count or count not in content.shape:
        return None
    numbers = content.reshape(-1)
    first = numbers[0]
    if first != int(first) or not (numbers == np.arange(count) + int(first)).all():
        return None
    return PositionSource(value, content.ndim, content.shape.index(count), int(first))


def _cut(node: ir.Node, content: Array) -> PositionSource | None:
    """The first rows of a constant."""
    table = _content(node.inputs[0]) if node.op_type == "Slice" else None
    if table is None or table.ndim != content.ndim:
        return None
    grown = growing_axes(content, table)
    if len(grown) != 1 or content.shape[grown[0]] != len(_NEAR):
        return None
    if not np.array_equal(np.take(table, range(len(_NEAR)), grown[0]), content):
        return None
    return PositionSource(node.outputs[0], content.ndim, grown[0], table=node.inputs[0])


def _content(value: ir.Value | None) -> Array | None:
    """A constant of any size."""
    if value is None or (value.is_graph_input() and not value.is_initializer()):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return read_tensor(tensor) if tensor is not None else None
