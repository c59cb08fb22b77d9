"""Rotary position embedding, from its parts to the standard op.

    y = x * C + rotate(x) * S                 x [B,H,T,D]; C, S [1|B,1,T,D] cosines and sines
    y1 = a * c - b * s, y2 = b * c + a * s    a, b [B,H,T,D/2]; c, s [1|B,1,T,D/2]

or the same over [B,T,H,D]. In the first form the rotation is spelled with slices, splits, negations
and concatenations. It is recognised by sending numbers through: y must be what `RotaryEmbedding`
gives for the first halves of the tables (or every other entry, when interleaved), and the other
halves must repeat them. In the second, a and b may be any two parts of the data.
Source: RoFormer, Su et al. 2021 (arXiv 2104.09864); ONNX RotaryEmbedding-23.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.probe import Probe, ProbeFailure

__all__ = ["Halves", "Rotary", "match_halves", "match_rotary"]

_DEEPEST = 8
_LONGER = 50  # tokens more, at which tables are looked at again
_Fixed = Container[ir.Value | None]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cosines or sines.

    Attributes:
        value: [1|B,1,T,D] or, where `heads_last`, [1|B,T,1,D].
        heads_last: Whether the data is [B,T,H,D].
    """

    value: ir.Value
    heads_last: bool


@dataclasses.dataclass(frozen=True)
class Rotary:
    """One rotation: input, tables over all of D, and the value to replace."""

    x: ir.Value
    cosines: Table
    sines: Table
    interleaved: bool
    output: ir.Value


@dataclasses.dataclass(frozen=True)
class Halves:
    """One rotation of pairs (a, b) to (y1, y2), with tables over D/2."""

    a: ir.Value
    b: ir.Value
    cosines: Table
    sines: Table
    first: ir.Value
    second: ir.Value


def match_rotary(probe: Probe, fixed: _Fixed, node: ir.Node) -> Rotary | None:
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
        if cosines.heads_last != sines.heads_last or not _comes_from(rotated, x):
            continue
        interleaved = _tables_repeat(probe, cosines.value, sines.value)
        if interleaved is None or not _rotates(probe, x, rotated, interleaved):
            continue
        return Rotary(x, cosines, sines, interleaved, node.outputs[0])
    return None


def match_halves(probe: Probe, fixed: _Fixed, node: ir.Node) -> Halves | None:
    """Read the rotation of pairs whose first half ends in a `Sub`; None if it is no such thing."""
    if node.op_type != "Sub" or node.domain:
        return None
    products = [v.producer() if v is not None else None for v in node.inputs]
    straight, turned = (_table_product(probe, fixed, product) for product in products)
    if straight is None or turned is None:
        return None
    (a, cosines), (b, sines) = straight, turned
    if a is b or probe.shape_of(a) != probe.shape_of(b) or a.shape != b.shape:
        return None
    for use in b.uses():
        product = use.node
        if _table_product(probe, fixed, product) != (b, cosines):
            continue
        for total in [u.node for u in product.outputs[0].uses() if u.node.op_type == "Add"]:
            other = next((v for v in total.inputs if v is not product.outputs[0]), None)
            rest = other.producer() if other is not None else None
            if _table_product(probe, fixed, rest) == (a, sines):
                return Halves(a, b, cosines, sines, node.outputs[0], total.outputs[0])
    return None


def _table_product(
    probe: Probe, fixed: _Fixed, node: ir.Node | None
) -> tuple[ir.Value, Table] | None:
    """`(data, table)` of a product of data with a table that all heads share."""
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
        if size[3] != shape[3] or size[3] % 2 or shape[0] not in (1, size[0]):
            continue
        if shape[1] == 1 and shape[2] == size[2]:
            return data, Table(table, heads_last=False)
        if shape[2] == 1 and shape[1] == size[1]:
            return data, Table(table, heads_last=True)
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
        found = _repetition(probe, cosines, sines)
    except ProbeFailure:
        return None
    longer = Probe(probe.model, {name: size + _LONGER for name, size in probe.sizes.items()})
    try:
        return found if _repetition(longer, cosines, sines) == found else None
    except ProbeFailure:  # a constant table may end before that
        return found


def _repetition(probe: Probe, cosines: ir.Value, sines: ir.Value) -> bool | None:
    tables = [probe.run(cosines), probe.run(sines)]
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
