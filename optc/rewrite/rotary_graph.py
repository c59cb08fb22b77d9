"""Write the standard `RotaryEmbedding` in the place of rotations that were recognised.

Tables are cut to D/2 and given the batch of the data once, however many layers use them: no runtime
accepts tables of batch 1 for a larger batch.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.insert import Insert, take_over
from optc.ir.probe import Probe
from optc.rewrite.movement import is_same
from optc.rewrite.rotary import Halves, Rotary, Table

__all__ = ["RotaryFusion"]

_SWAP = [0, 2, 1, 3]


class RotaryFusion:
    """Rewrites rotations of one model in place; dead parts are left for the caller.

    Args:
        model: The model.
        probe: Evaluates parts of it at sizes that differ from each other.
    """

    def __init__(self, model: ir.Model, probe: Probe):
        self.model = model
        self.probe = probe
        self._tables: dict[tuple[Table, str, str], ir.Value] = {}

    def fuse(self, found: Rotary) -> None:
        """Put the standard op in the place of `x * C + rotate(x) * S`."""
        at = found.output.producer()
        assert at is not None
        every = "second" if found.interleaved else "half"
        tables = [self._cut(t, found.x, every, at) for t in (found.cosines, found.sines)]
        insert = Insert(self.model, at)
        made = self._rotated(insert, found.x, tables, found.cosines.heads_last, found.interleaved)
        take_over(found.output, made)

    def fuse_halves(self, found: Halves) -> None:
        """Put it in the place of `a * c - b * s` and `b * c + a * s`."""
        at = found.first.producer()  # the other may come before it: the caller sorts
        assert at is not None
        tables = [self._cut(t, found.a, "all", at) for t in (found.cosines, found.sines)]
        insert = Insert(self.model, at)
        x = self._joined(insert, found)
        made = self._rotated(insert, x, tables, found.cosines.heads_last, interleaved=False)
        size = found.a.shape[3] if found.a.shape is not None else 0
        half = size if isinstance(size, int) else 0
        parts = []
        for output, start in ((found.first, 0), (found.second, half)):
            bounds = [insert.ints([n]) for n in (start, start + half, -1)]
            parts.append(insert.node("Slice", [made, *bounds], made.dtype, output.shape))
            take_over(output, parts[-1])
        _skip_joining(made, parts)

    def _joined(self, insert: Insert, found: Halves) -> ir.Value:
        """`a` beside `b`: what they were cut from, if they were."""
        dims = list(found.a.shape or ())
        whole = ir.Shape([*dims[:3], dims[3] * 2])
        joined = insert.node("Concat", [found.a, found.b], found.a.dtype, whole, axis=-1)
        cut = found.a.producer()
        source = cut.inputs[0] if cut is not None and cut.inputs else None
        same = source is not None and source.shape == whole
        if same and source is not None and is_same(self.probe, source, joined):
            return source
        return joined

    def _rotated(
        self,
        insert: Insert,
        x: ir.Value,
        tables: list[ir.Value],
        heads_last: bool,
        interleaved: bool,
    ) -> ir.Value:
        if heads_last:
            x = insert.transpose(x, _SWAP)
        made = insert.node(
            "RotaryEmbedding", [x, *tables], x.dtype, x.shape, interleaved=int(interleaved)
        )
        return insert.transpose(made, _SWAP) if heads_last else made

    def _cut(self, table: Table, x: ir.Value, every: str, before: ir.Node) -> ir.Value:
        """A table with heads to [B,T,D/2]: its first half, every second entry, or all of it."""
        batch = str(x.shape[0]) if x.shape is not None else str(x.name)
        key = (table, every, batch)
        if key not in self._tables:
            self._tables[key] = self._narrow(Insert(self.model, before), table, x, every)
        return self._tables[key]

    def _narrow(self, insert: Insert, table: Table, x: ir.Value, every: str) -> ir.Value:
        size = x.shape[3] if x.shape is not None else None
        width = int(size) if isinstance(size, int) else 0
        value = table.value
        if every != "all":
            stop, step = (width, 2) if every == "second" else (width // 2, 1)
            bounds = [insert.ints([n]) for n in (0, stop, 3, step)]
            value = insert.node("Slice", [value, *bounds], value.dtype)
        axis = 2 if table.heads_last else 1
        flat = insert.node("Squeeze", [value, insert.ints([axis])], table.value.dtype)
        shape = insert.concat([insert.size(x, 0, 1), insert.ints([1, 1])])
        return insert.node("Expand", [flat, shape], table.value.dtype)


def _skip_joining(made: ir.Value, parts: list[ir.Value]) -> None:
    """Who puts the two halves side by side again gets the whole."""
    for user in [use.node for use in parts[0].uses() if use.node.op_type == "Concat"]:
        output = user.outputs[0]
        rank = len(output.shape) if output.shape is not None else 4
        last = user.attributes.get_int("axis", -1) in (-1, rank - 1)
        if last and list(user.inputs) == parts and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, made)
