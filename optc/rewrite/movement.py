"""Data movement between two values: is it a transpose, a repetition of heads, or nothing?

Between a projection and the attention product, exporters put chains of Reshape, Transpose,
Unsqueeze, Expand and their shape arithmetic. What a chain does is decided by sending shuffled
numbers through it (see `optc.ir.probe`), not by the names of its links.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import scalar
from optc.ir.probe import Probe, ProbeFailure

__all__ = [
    "Heads",
    "flat_transposed",
    "flattened",
    "is_same",
    "repeated",
    "resolve_heads",
    "transposed",
    "unscaled",
]

_MOVES = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity", "Flatten"}
_DEEPEST = 16


@dataclasses.dataclass(frozen=True)
class Heads:
    """Where the heads of one operand come from.

    Attributes:
        value: [B, H, T, D], upstream of all repetition and transposition that was recognised.
        repeat: How often each head is repeated on the way.
        factor: Product of the scalar factors on the way.
    """

    value: ir.Value
    repeat: int
    factor: float


def transposed(x: Array, repeat: int) -> Array:
    """[B,H,T,D] to [B,H*repeat,D,T]."""
    return np.swapaxes(np.repeat(x, repeat, axis=1), 2, 3)


def repeated(x: Array, repeat: int) -> Array:
    """[B,H,T,D] to [B,H*repeat,T,D]."""
    return np.repeat(x, repeat, axis=1)


def flattened(x: Array, repeat: int) -> Array:
    """[B,H,T,D] to [B*H*repeat,T,D]."""
    return repeated(x, repeat).reshape(-1, *x.shape[2:])


def flat_transposed(x: Array, repeat: int) -> Array:
    """[B,H,T,D] to [B*H*repeat,D,T]."""
    return np.swapaxes(flattened(x, repeat), 1, 2)


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
            value = node.inputs[0]
        elif (step := _scalar_factor(value)) is not None:
            value, factor = step[0], factor * step[1]
        else:
            return


def resolve_heads(
    probe: Probe,
    target: ir.Value,
    relation: Callable[[Array, int], Array],
    heads: int | None,
    *,
    grouped: bool = True,
) -> Heads | None:
    """Find the value furthest upstream that gives `target` by `relation`.

    Args:
        probe: Evaluates at sizes that differ from each other.
        target: [B, H, T, D] or [B, H, D, T], an operand of an attention product.
        relation: `transposed` or `repeated`.
        heads: Number of heads of the query, a multiple of that of the keys; None if `target` is
            the query.
        grouped: Whether to look upstream of a repetition of heads.

    Returns:
        None if no value, `target` included, is in that relation.
    """
    best: Heads | None = None
    for value, factor in _upstream(target):
        source = probe.shape_of(value)
        if source is None or len(source) != 4 or not source[1]:
            continue
        if heads is not None and heads % source[1]:
            continue
        repeat = heads // source[1] if heads is not None else 1
        if repeat > 1 and not grouped:
            continue
        if _is_related(probe, value, target, factor, repeat, relation):
            best = Heads(value, repeat, factor)
    return best


def _is_related(
    probe: Probe,
    value: ir.Value,
    target: ir.Value,
    factor: float,
    repeat: int,
    relation: Callable[[Array, int], Array],
) -> bool:
    shape = probe.shape_of(value)
    if shape is None:
        return False
    order = np.random.default_rng(0).permutation(int(np.prod(shape)))
    sent = (order % 2039 + 1).reshape(shape)  # whole numbers that half precision holds exactly
    sent = sent.astype(value.dtype.numpy() if value.dtype is not None else np.float32)
    try:
        got = probe.run(target, {value: sent})
    except ProbeFailure:
        return False
    expected = relation(sent.astype(np.float32), repeat) * factor
    if got.ndim == 4 and got.shape[1] == 1:  # one key head meets all query heads by broadcasting
        expected = expected[:, :1] if shape[1] == 1 else expected
    return got.shape == expected.shape and np.allclose(got, expected, rtol=2e-3, atol=0)


def is_same(probe: Probe, source: ir.Value, target: ir.Value) -> bool:
    """Whether `target` is `source` moved there and back."""
    return _is_related(probe, source, target, 1.0, 1, repeated)
