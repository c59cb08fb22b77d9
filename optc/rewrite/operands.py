"""Bring the operands of one attention site to [B,H,S,D], whatever leading axes they have.

Products may be over [B*H,S,D], [B,H,S,D], [B,Hkv,G,S,D], or no batch at all. Where a value further
upstream already is [B,H,S,D] it is taken (`optc.rewrite.movement`); where none is, the operand is
reshaped. Leading axes are all batch to a product of matrices, so any split of them into B and H is
exact, as long as all operands and masks are split alike.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from optc.ir.insert import Insert
from optc.ir.probe import Probe
from optc.rewrite.attention import AttentionMatch
from optc.rewrite.movement import Heads, Split, resolve_heads

__all__ = ["Operands", "find_operands", "given_operands"]


@dataclasses.dataclass(frozen=True)
class Operands:
    """Where queries, keys and values of one site come from.

    Attributes:
        query: [B,Hq,S,D].
        key: [B,Hkv,T,D].
        value: [B,Hkv,T,Dv].
        factor: Scalar factors between these and the operands of the products.
        split: How the leading axes of the site are split into B and H.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    factor: float
    split: Split


def find_operands(probe: Probe, match: AttentionMatch, insert: Insert) -> Operands | str:
    """Find the operands, or make them.

    Args:
        probe: Evaluates at sizes that differ from each other.
        match: The site.
        insert: Where nodes that are missing go: in front of the site.

    Returns:
        The operands; a sentence why not.
    """
    shape = probe.shape_of(match.query)
    if shape is None or match.query.shape is None or len(shape) < 2:
        return f"the shape of its queries is not known (it is {match.query.shape})"
    for operand, what in ((match.key, "keys"), (match.value, "values")):
        if probe.shape_of(operand) is None:
            return f"the shape of its {what} is not known (it is {operand.shape})"
    lead = _lead(probe, match.query, match.key)
    if lead is None:
        return f"its queries {match.query.shape} and keys {match.key.shape} have different axes"
    after = _lead(probe, match.value, match.output) or lead
    if math.prod(after) != math.prod(lead):
        after = lead = _lead(probe, match.query, match.key, match.value) or lead
    query = resolve_heads(probe, match.query, Split(lead, 0, 0))
    if query is None and len(shape) == 4:
        query = Heads(match.query, 1, 1.0)
    if len(lead) == 2 and len(shape) == 4 and shape[1] == 1 < lead[1]:
        query = Heads(insert.expand_heads(match.query, lead[1]), 1, 1.0)
    split = _split_of(probe, query, lead)
    if split is None or query is None:
        split = _default_split(match.query.shape, lead, after)
        query = Heads(_merged(insert, match.query, split), 1, 1.0)
    return _with_keys(probe, match, insert, query, split, after)


def given_operands(probe: Probe, match: AttentionMatch) -> Operands | None:
    """The operands of the standard op as they are: it takes grouped heads itself."""
    shape = probe.shape_of(match.query)
    if match.key_transposed or shape is None or len(shape) != 4:
        return None
    split = Split(shape[:2], *shape[:2])
    return Operands(match.query, match.key, match.value, 1.0, split)


def _lead(probe: Probe, *operands: ir.Value) -> tuple[int, ...] | None:
    """The leading axes of operands, broadcast to each other."""
    shapes = [probe.shape_of(v) for v in operands]
    try:
        return np.broadcast_shapes(*(shape[:-2] for shape in shapes if shape is not None))
    except ValueError:
        return None


def _split_of(probe: Probe, query: Heads | None, lead: tuple[int, ...]) -> Split | None:
    shape = probe.shape_of(query.value) if query is not None else None
    if shape is None or len(shape) != 4:
        return None
    return Split(lead, math.prod(lead) // shape[1], shape[1])


def _default_split(shape: ir.Shape, lead: tuple[int, ...], after: tuple[int, ...]) -> Split:
    """Of several axes all but the first are heads, where their sizes are known."""
    if len(lead) != 2 and len(after) == 2:  # the probabilities were reshaped before the values
        return Split(lead, *after)
    if len(lead) == 1:
        heads = _coefficient(shape[0])
        return Split(lead, lead[0] // heads, heads)
    if not lead:
        return Split(lead, 1, 1)
    known = all(isinstance(shape[i], int) for i in range(1, len(lead)))
    heads = math.prod(lead[1:]) if known else lead[-1]
    return Split(lead, math.prod(lead) // heads, heads)


def _coefficient(dim: int | ir.SymbolicDim) -> int:
    """4 of `4*batch`: where batch and heads are one axis, that many are heads."""
    text = dim.value if isinstance(dim, ir.SymbolicDim) else None
    number, star, name = (text or "").partition("*")
    return int(number) if star and number.isdecimal() and name.isidentifier() else 1


def _with_keys(
    probe: Probe,
    match: AttentionMatch,
    insert: Insert,
    query: Heads,
    split: Split,
    after: tuple[int, ...],
) -> Operands | str:
    at_values = dataclasses.replace(split, lead=after)
    pair = _grouped(probe, match, insert, split, at_values)
    pair = pair or _single(probe, match, insert, split, at_values)
    if pair is None:
        return (
            f"the layout of its keys {match.key.shape} and values {match.value.shape} does not "
            f"fit that of its queries {match.query.shape}"
        )
    key, value = pair
    operands = [heads.form.insert(insert, heads.value) for heads in (query, key, value)]
    same = _same_batch(insert, operands)
    if same is None:
        return "queries, keys and values are not known to have the same batch"
    return Operands(same[0], same[1], same[2], query.factor * key.factor, split)


def _grouped(
    probe: Probe, match: AttentionMatch, insert: Insert, split: Split, at_values: Split
) -> tuple[Heads, Heads] | None:
    """Keys and values from before their repetition, when both are repeated alike."""
    key = resolve_heads(probe, match.key, split, transposed=match.key_transposed)
    value = resolve_heads(probe, match.value, at_values)
    if key is None or value is None or value.factor != 1.0:
        return None
    if key.repeat == 1 < value.repeat:
        key = _before_rotation(probe, insert, key, split) or key
    return (key, value) if key.repeat == value.repeat else None


def _before_rotation(probe: Probe, insert: Insert, key: Heads, split: Split) -> Heads | None:
    """Keys that were repeated and then rotated are rotated before, since heads rotate alike."""
    rotation = key.value.producer()
    if rotation is None or rotation.op_type != "RotaryEmbedding" or rotation.domain:
        return None
    given, cosines, sines = rotation.inputs[:3]
    if len(rotation.inputs) > 3 or given is None or cosines is None or sines is None:
        return None
    lead = (split.batch, split.heads)
    found = resolve_heads(probe, given, Split(lead, *lead))
    if found is None or found.repeat == 1 or found.factor != 1.0:
        return None
    interleaved = rotation.attributes.get_int("interleaved", 0)
    heads = found.form.insert(insert, found.value)
    inputs = [heads, cosines, sines]
    rotated = insert.node(
        "RotaryEmbedding", inputs, heads.dtype, heads.shape, interleaved=interleaved
    )
    return Heads(rotated, found.repeat, key.factor)


def _single(
    probe: Probe, match: AttentionMatch, insert: Insert, split: Split, at_values: Split
) -> tuple[Heads, Heads] | None:
    """Keys and values as they are, found upstream or made."""
    transposed = match.key_transposed
    key = resolve_heads(probe, match.key, split, grouped=False, transposed=transposed)
    value = resolve_heads(probe, match.value, at_values, grouped=False)
    if value is not None and value.factor != 1.0:
        value = None
    key = key or _made(probe, match.key, insert, split, transpose=transposed)
    value = value or _made(probe, match.value, insert, at_values)
    if key is None or value is None or key.repeat != value.repeat:
        return None
    return key, value


def _made(
    probe: Probe, value: ir.Value, insert: Insert, split: Split, *, transpose: bool = False
) -> Heads | None:
    """An operand reshaped to [B,H,T,D] by new nodes."""
    shape = probe.shape_of(value)
    assert shape is not None
    padded = (1,) * (len(split.lead) - len(shape[:-2])) + shape[:-2]
    whole = padded == split.lead
    per_group = len(padded) == 3 and padded[:2] == split.lead[:2] and padded[2] == 1
    shared = all(n == 1 for n in padded)
    if not (whole or per_group or shared or (len(padded) == 2 and _broadcasts(padded, split.lead))):
        return None
    if transpose:
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        value = insert.transpose(value, order)
    if len(shape) == 4 and len(split.lead) == 2:
        return Heads(value, split.heads // max(shape[1], 1), 1.0)
    if whole:
        return Heads(_merged(insert, value, split), 1, 1.0)
    heads = padded[1] if per_group else 1
    return Heads(insert.lead(value, heads), split.heads // heads, 1.0)


def _broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return all(a in (1, b) for a, b in zip(small, large, strict=True))


def _merged(insert: Insert, value: ir.Value, split: Split) -> ir.Value:
    if len(split.lead) == 2:
        return value
    return insert.lead(value, split.heads)


def _same_batch(insert: Insert, values: list[ir.Value]) -> list[ir.Value] | None:
    """The same values with the same batch: those that have one row are repeated."""
    dims = [v.shape[0] if v.shape is not None else None for v in values]
    named = [d.value if isinstance(d, ir.SymbolicDim) else d for d in dims]
    most = [i for i, d in enumerate(named) if d != 1]
    if any(d is None for d in named) or len({named[i] for i in most}) > 1:
        return None
    if not most or len(most) == len(values):
        return values
    like = values[most[0]]
    return [v if i in most else insert.expand_batch(v, like) for i, v in enumerate(values)]
