"""Data movement between two values: is it a transpose, a repetition of heads, or nothing?

Between a projection and the attention product, exporters put chains of Reshape, Transpose,
Unsqueeze, Expand and their shape arithmetic. What a chain does is decided by sending shuffled
numbers through it (see `optc.ir.probe`), not by the names of its links.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import constant, scalar
from optc.ir.insert import Insert
from optc.ir.probe import Probe, ProbeFailure

__all__ = ["Form", "Heads", "Split", "is_same", "resolve_heads", "unscaled"]

_MOVES = {
    "Cast",
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
_CUTS = {"Gather", "Slice", "Split"}
_DEEPEST = 16


@dataclasses.dataclass(frozen=True)
class Split:
    """How the leading axes of a product [.., S, D] are split into batch and heads.

    Attributes:
        lead: Leading axes of the query, at the sizes of the probe.
        batch: B; 0 while it is not known.
        heads: H; 0 while it is not known.
    """

    lead: tuple[int, ...]
    batch: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Form:
    """Axes of a value that is [B,H,T,D] but for an axis too many, or heads after tokens.

    Attributes:
        extra: Axis of size 1 to drop first; None for none.
        swapped: Whether it is [B,T,H,D].
    """

    extra: int | None = None
    swapped: bool = False

    def apply(self, array: Array) -> Array:
        """[B,H,T,D]."""
        if self.extra is not None:
            array = np.squeeze(array, self.extra)
        return np.swapaxes(array, 1, 2) if self.swapped else array

    def insert(self, insert: Insert, value: ir.Value) -> ir.Value:
        """The same with nodes."""
        if self.extra is not None:
            dims = list(value.shape or ())
            shape = ir.Shape([d for i, d in enumerate(dims) if i != self.extra])
            value = insert.node("Squeeze", [value, insert.ints([self.extra])], value.dtype, shape)
        return insert.transpose(value, [0, 2, 1, 3]) if self.swapped else value


_AS_IT_IS = Form()


@dataclasses.dataclass(frozen=True)
class Heads:
    """Where the heads of one operand come from.

    Attributes:
        value: [B, H, T, D], upstream of all repetition and transposition that was recognised.
        repeat: How often each head is repeated on the way.
        factor: Product of the scalar factors on the way.
        form: How the axes of `value` have to be changed before it is [B, H, T, D].
    """

    value: ir.Value
    repeat: int
    factor: float
    form: Form = _AS_IT_IS


def unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """Strip scalar factors: `x * 2 / 4` is `(x, 0.5)`."""
    factor = 1.0
    while (step := _scalar_factor(value)) is not None:
        value, factor = step[0], factor * step[1]
    return value, factor


def _scalar_factor(value: ir.Value) -> tuple[ir.Value, float] | None:
    node = value.producer()
    if node is None or node.op_type not in {"Mul", "Div"} or node.domain:
        return None
    left, right = node.inputs
    if left is None or right is None:
        return None
    number = scalar(right)
    if number is not None:
        if node.op_type == "Div":
            return (left, 1.0 / number) if number else None
        return left, number
    number = scalar(left)
    return (right, number) if number is not None and node.op_type == "Mul" else None


def _upstream(value: ir.Value) -> Iterator[tuple[ir.Value, float]]:
    """`value`, then what it is moved from, each with the factor between."""
    factor = 1.0
    for _ in range(_DEEPEST):
        yield value, factor
        node = value.producer()
        if node is None:
            return
        if node.op_type in _MOVES and node.domain == "" and node.inputs[0] is not None:
            if not _may_only_move(node):
                return
            value = node.inputs[0]
        elif (step := _scalar_factor(value)) is not None:
            value, factor = step[0], factor * step[1]
        else:
            return


def _may_only_move(node: ir.Node) -> bool:
    """Whether numbers at the probe's sizes show what the node does at all sizes.

    A cut at a fixed place does not show where the axis is shorter: axes of unknown size must come
    out as they went in, and entries may be picked by constants only. A cast must keep fractions.
    """
    before, after = node.inputs[0], node.outputs[0]
    if before is None:
        return False
    if node.op_type == "Cast":
        return all(v.dtype is not None and v.dtype.is_floating_point() for v in (before, after))
    if node.op_type not in _CUTS:
        return True
    if before.shape is None or after.shape is None:
        return False
    picks = node.op_type != "Gather" or constant(node.inputs[1]) is not None
    return picks and _unknown(before.shape) == _unknown(after.shape)


def _unknown(shape: ir.Shape) -> list[str]:
    return [str(dim) for dim in shape if not isinstance(dim, int)]


def resolve_heads(
    probe: Probe,
    target: ir.Value,
    split: Split,
    *,
    grouped: bool = True,
    transposed: bool = False,
) -> Heads | None:
    """Find the value [B,H,T,D] furthest upstream that `target` is only moved from.

    Args:
        probe: Evaluates at sizes that differ from each other.
        target: [.., T, D] or [.., D, T], an operand of an attention product.
        split: Batch and heads of the site; unknown for the query, which decides them.
        grouped: Whether to look upstream of a repetition of heads.
        transposed: Whether `target` is [.., D, T].

    Returns:
        None if no value, `target` included, is in that relation.
    """
    best: Heads | None = None
    for value, factor in _upstream(target):
        source = probe.shape_of(value)
        if source is None or value.dtype != target.dtype or 0 in source:
            continue
        sent = _shuffled(source, value.dtype)
        got: Array | None = None
        for form in _forms(source):
            heads = form.apply(sent)
            repeat = _repeat(heads, split, grouped=grouped)
            if not repeat or (form != _AS_IT_IS and repeat == 1):
                continue
            got = _received(probe, value, target, sent) if got is None else got
            expected = np.repeat(heads.astype(np.float32), repeat, axis=1) * factor
            if got is not None and _is_moved(got, expected, split, transposed):
                best = Heads(value, repeat, factor, form)
                break
    return best


def _forms(shape: tuple[int, ...]) -> list[Form]:
    if len(shape) == 4:
        return [_AS_IT_IS, Form(swapped=True)]
    if len(shape) != 5:
        return []
    return [Form(axis, swapped) for axis, swapped in ((2, False), (3, True)) if shape[axis] == 1]


def _repeat(heads: Array, split: Split, *, grouped: bool) -> int:
    """How often each head must be repeated; 0 where that cannot be."""
    count, batch = heads.shape[1], heads.shape[0]
    wanted = split.heads or count
    if wanted % count or batch not in (1, split.batch or batch):
        return 0
    repeat = wanted // count
    return repeat if repeat == 1 or grouped else 0


def _shuffled(shape: tuple[int, ...], dtype: ir.DataType | None) -> Array:
    """Whole numbers that half precision holds exactly, in a random order."""
    order = np.random.default_rng(0).permutation(int(np.prod(shape)))
    return (order % 2039 + 1).reshape(shape).astype(dtype.numpy() if dtype else np.float32)


def _received(probe: Probe, value: ir.Value, target: ir.Value, sent: Array) -> Array | None:
    try:
        return probe.run(target, {value: sent})
    except ProbeFailure:
        return None


def _is_moved(got: Array, expected: Array, split: Split, transposed: bool) -> bool:
    """Whether `got` [.., T, D], broadcast to the leading axes, is `expected` [B,H,T,D]."""
    if transposed:
        got = np.swapaxes(got, -1, -2)
    heads = split.heads or expected.shape[1]
    batch = split.batch or math.prod(split.lead) // heads
    if got.ndim < 2 or batch * heads != math.prod(split.lead):
        return False
    last = got.shape[-2:]
    try:
        whole = np.broadcast_to(got, (*split.lead, *last)).reshape(batch, heads, *last)
        wanted = np.broadcast_to(expected, (batch, *expected.shape[1:]))
    except ValueError:
        return False
    return whole.shape == wanted.shape and np.allclose(whole, wanted, rtol=2e-3, atol=0)


def is_same(probe: Probe, source: ir.Value, target: ir.Value) -> bool:
    """Whether `target` is `source` moved there and back."""
    shape = probe.shape_of(source)
    if shape is None:
        return False
    sent = _shuffled(shape, source.dtype)
    got = _received(probe, source, target, sent)
    return got is not None and got.shape == sent.shape and bool((got == sent).all())
