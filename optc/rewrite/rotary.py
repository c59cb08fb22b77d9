"""Rotary position embedding, from its parts to the standard op.

    y = x * C + rotate(x) * S           x [B,H,T,D]; C, S [1|B,1,T,D] tables of cosines and sines

The rotation is spelled with slices, splits, negations and concatenations. It is recognised by
sending numbers through: y must be what `RotaryEmbedding` gives for the first halves of the tables
(or every other entry, when interleaved), and the other halves must repeat them.
Source: RoFormer, Su et al. 2021 (arXiv 2104.09864); ONNX RotaryEmbedding-23.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.probe import Probe, ProbeFailure

__all__ = ["Rotary", "RotaryFusion", "match_rotary"]

_DEEPEST = 8


@dataclasses.dataclass(frozen=True)
class Rotary:
    """One rotation: input [B,H,T,D], tables [1|B,1,T,D], and the value to replace."""

    x: ir.Value
    cosines: ir.Value
    sines: ir.Value
    interleaved: bool
    output: ir.Value


def match_rotary(probe: Probe, fixed: Container[ir.Value | None], node: ir.Node) -> Rotary | None:
    """Read the rotation that ends in an `Add`.

    Args:
        probe: Evaluates at sizes that differ from each other.
        fixed: Values that no input's contents reach; see `optc.ir.probe.fixed_values`.
        node: Any node.

    Returns:
        None if it is no such sum.
    """
    if node.op_type != "Add" or node.domain:
        return None
    products = [v.producer() if v is not None else None for v in node.inputs]
    for first, second in (products, products[::-1]):
        straight = _table_product(probe, fixed, first)
        turned = _table_product(probe, fixed, second)
        if straight is None or turned is None:
            continue
        x, cosines = straight
        rotated, sines = turned
        if not _comes_from(rotated, x):
            continue
        interleaved = _tables_repeat(probe, cosines, sines)
        if interleaved is None or not _rotates(probe, x, rotated, interleaved):
            continue
        return Rotary(x, cosines, sines, interleaved, node.outputs[0])
    return None


def _table_product(
    probe: Probe, fixed: Container[ir.Value | None], node: ir.Node | None
) -> tuple[ir.Value, ir.Value] | None:
    """`(data, table)` of a product of data [B,H,T,D] with a table [1|B,1,T,D]."""
    if node is None or node.op_type != "Mul":
        return None
    left, right = node.inputs
    if left is None or right is None:
        return None
    for data, table in ((left, right), (right, left)):
        if table not in fixed or data in fixed:
            continue
        shape, size = probe.shape_of(table), probe.shape_of(data)
        if shape is None or size is None or len(shape) != 4 or len(size) != 4:
            continue
        if shape[1] == 1 and shape[2:] == size[2:] and size[3] % 2 == 0:
            return data, table
    return None


def _comes_from(value: ir.Value, x: ir.Value) -> bool:
    """Whether the first data operands upstream of `value` reach `x` in a few steps."""
    for _ in range(_DEEPEST):
        if value is x:
            return True
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def _tables_repeat(probe: Probe, cosines: ir.Value, sines: ir.Value) -> bool | None:
    """False if the second half repeats the first, True if neighbours repeat, None if neither."""
    try:
        tables = [probe.run(cosines), probe.run(sines)]
    except ProbeFailure:
        return None
    half = tables[0].shape[-1] // 2
    if all((t[..., :half] == t[..., half:]).all() for t in tables):
        return False
    if all((t[..., ::2] == t[..., 1::2]).all() for t in tables):
        return True
    return None


def _rotates(probe: Probe, x: ir.Value, rotated: ir.Value, interleaved: bool) -> bool:
    shape = probe.shape_of(x)
    if shape is None:
        return False
    sent = np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape) % 2039 + 1
    sent = sent.astype(x.dtype.numpy() if x.dtype is not None else np.float32)
    try:
        got = probe.run(rotated, {x: sent})
    except ProbeFailure:
        return False
    return got.shape == shape and bool((got == _rotate(sent, interleaved)).all())


def _rotate(x: Array, interleaved: bool) -> Array:
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        return np.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(x.shape)
    half = x.shape[-1] // 2
    return np.concatenate([-x[..., half:], x[..., :half]], -1)


class RotaryFusion:
    """Writes the standard op; tables are cut once, however many layers use them."""

    def __init__(self, model: ir.Model):
        self.model = model
        self._tables: dict[tuple[ir.Value, bool, str], ir.Value] = {}

    def fuse(self, found: Rotary) -> None:
        """Put the standard op in the place of one rotation."""
        at = found.output.producer()
        assert at is not None
        tables = [self._cut(t, found, at) for t in (found.cosines, found.sines)]
        attributes = {"interleaved": int(found.interleaved)}
        node = ir.node("RotaryEmbedding", [found.x, *tables], attributes)
        self.model.graph.insert_before(at, node)
        made = node.outputs[0]
        made.type, made.shape = found.output.type, found.output.shape
        name, found.output.name = found.output.name, f"{found.output.name}_unfused"
        made.name = name
        ir.convenience.replace_all_uses_with(found.output, made, replace_graph_outputs=True)

    def _cut(self, table: ir.Value, found: Rotary, before: ir.Node) -> ir.Value:
        """[1|B,1,T,D] to [B,T,D/2]."""
        batch = str(found.x.shape[0]) if found.x.shape is not None else str(found.x.name)
        key = (table, found.interleaved, batch)
        if key not in self._tables:
            self._tables[key] = self._insert(table, found, before)
        return self._tables[key]

    def _insert(self, table: ir.Value, found: Rotary, before: ir.Node) -> ir.Value:
        size = found.x.shape[3] if found.x.shape is not None else None
        half = int(size) // 2 if isinstance(size, int) else 0
        stop, step = (2 * half, 2) if found.interleaved else (half, 1)
        steps = [
            self._ints([0], before),
            self._ints([stop], before),
            self._ints([3], before),
            self._ints([step], before),
        ]
        cut = self._add("Slice", [table, *steps], table, before)
        flat = self._add("Squeeze", [cut, self._ints([1], before)], table, before)
        batch = ir.node("Shape", [found.x], {"start": 0, "end": 1})
        self.model.graph.insert_before(before, batch)
        ones = self._ints([1, 1], before)
        shape = ir.node("Concat", [batch.outputs[0], ones], {"axis": 0})
        self.model.graph.insert_before(before, shape)
        return self._add("Expand", [flat, shape.outputs[0]], table, before)

    def _ints(self, values: list[int], before: ir.Node) -> ir.Value:
        node = ir.node("Constant", [], {"value_ints": values})
        self.model.graph.insert_before(before, node)
        return node.outputs[0]

    def _add(self, op: str, inputs: list[ir.Value], like: ir.Value, before: ir.Node) -> ir.Value:
        node = ir.node(op, inputs)
        self.model.graph.insert_before(before, node)
        node.outputs[0].type = like.type
        return node.outputs[0]
