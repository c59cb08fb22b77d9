"""Find attention in a graph: the standard op, or its parts around a Softmax.

Decomposed attention is read from the Softmax outwards, over use-def edges:

    scores = softcap(scale * (Q @ K^T)) + masks        softcap and masks (Add, Where) optional
    P = Softmax(scores), perhaps guarded by Where(IsNaN(P), 0, P)
    output = P @ V

Products may be over [B*H,S,D] (`flat`), with reshapes to [B,H,S,T] and back in between.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.core.base import Refusal
from optc.ir.constants import constant, scalar
from optc.ir.masks import visible_part
from optc.rewrite.movement import unscaled

__all__ = ["AttentionMatch", "MaskTerm", "match_attention"]


_DEEPEST = 12


@dataclasses.dataclass(frozen=True)
class MaskTerm:
    """One mask.

    Attributes:
        value: Boolean, True is visible; or additive.
        negated: Whether True is hidden.
        finite: Whether hidden scores become a large negative number rather than minus infinity,
            so that a row that sees nothing averages all values instead of giving zeros or NaN.
    """

    value: ir.Value
    negated: bool = False
    finite: bool = False


@dataclasses.dataclass(frozen=True)
class AttentionMatch:
    """One attention site, before its heads and masks are understood.

    Attributes:
        output: The value that the canonical op will replace, [B,Hq,S,Dv].
        query: [B,Hq,S,D], scalar factors stripped into `scale`.
        key: Second operand of the score product.
        key_transposed: Whether `key` is [B,H,D,T] rather than [B,H,T,D].
        value: [B,H,T,Dv], perhaps repeated.
        scale: Factor on the scores.
        softcap: Bound of the scores; 0.0 for none.
        causal: Whether the op itself says that it is causal.
        masks: Masks in the order applied.
        flat: Whether the operands are [B*H,S,D] rather than [B,H,S,D].
    """

    output: ir.Value
    query: ir.Value
    key: ir.Value
    key_transposed: bool
    value: ir.Value
    scale: float
    softcap: float = 0.0
    causal: bool = False
    masks: tuple[MaskTerm, ...] = ()
    flat: bool = False


class _No(Exception):
    """Not fused; the text is the reason."""


def match_attention(node: ir.Node) -> AttentionMatch | Refusal | None:
    """Read the attention anchored at `node`.

    Returns:
        The match; a refusal if `node` anchors an attention that is not understood; None if it
        anchors no attention at all.
    """
    try:
        if node.domain == "" and node.op_type == "Attention":
            return _standard(node)
        if node.domain == "" and node.op_type == "Softmax":
            return _decomposed(node)
    except _No as reason:
        return Refusal(str(node.outputs[0].name), str(reason))
    return None


def _standard(node: ir.Node) -> AttentionMatch:
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    query, key, value, mask, past, _, lengths = inputs[:7]
    if query is None or key is None or value is None or query.shape is None:
        raise _No("the shape of the query is not known")
    if query.shape.rank() != 4:
        raise _No(f"the query has rank {query.shape.rank()}, only [B,H,S,D] is understood")
    if past is not None or lengths is not None:
        raise _No("the export already has a key/value cache; export it with use_cache=False")
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        raise _No("the attention scores or the cache are used elsewhere")
    attributes = node.attributes
    scale = float(attributes.get_float("scale", 0.0)) or _default_scale(query)
    query, factor = unscaled(query)
    return AttentionMatch(
        output=node.outputs[0],
        query=query,
        key=key,
        key_transposed=False,
        value=value,
        scale=scale * factor,
        softcap=attributes.get_float("softcap", 0.0),
        causal=bool(attributes.get_int("is_causal", 0)),
        masks=(MaskTerm(mask),) if mask is not None else (),
    )


def _default_scale(query: ir.Value) -> float:
    size = query.shape[-1] if query.shape is not None else None
    if not isinstance(size, int):
        raise _No("the head size is not known")
    return float(size**-0.5)


def _decomposed(softmax: ir.Node) -> AttentionMatch | None:
    product = _product_with_values(softmax)
    scores = _score_product(softmax.inputs[0])
    if product is None or scores is None:
        return None
    probabilities, values = product.inputs
    if values is None or probabilities is None or scores.inputs[1] is None:
        return None
    rank = values.shape.rank() if values.shape is not None else None
    if rank not in (3, 4):
        raise _No(f"the values have rank {rank or 'unknown'}, not [B,H,T,D] or [B*H,T,D]")
    if not _is_over_last_axis(softmax):
        raise _No("the Softmax is not over the keys")
    scale, softcap, masks = _read_scores(softmax.inputs[0], scores.outputs[0])
    if _is_guarded(softmax):
        masks = tuple(dataclasses.replace(mask, finite=False) for mask in masks)
    query, key = scores.inputs[0], scores.inputs[1]
    if query is None or key is None:
        return None
    query, factor = unscaled(query)
    return AttentionMatch(
        output=product.outputs[0],
        query=query,
        key=key,
        key_transposed=True,
        value=values,
        scale=scale * factor,
        softcap=softcap,
        masks=masks,
        flat=rank == 3,
    )


def _is_over_last_axis(softmax: ir.Node) -> bool:
    axis, shape = softmax.attributes.get_int("axis", -1), softmax.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _product_with_values(softmax: ir.Node) -> ir.Node | None:
    """The MatMul that the probabilities go into, past a guard against NaN."""
    value = softmax.outputs[0]
    for _ in range(4):
        users = [use.node for use in value.uses()]
        kinds = sorted(user.op_type for user in users)
        if kinds == ["MatMul"]:
            return users[0] if users[0].inputs[0] is value else None
        if kinds == ["IsNaN", "Where"]:
            where = next(user for user in users if user.op_type == "Where")
            if not _is_nan_guard(where, value):
                return None
            value = where.outputs[0]
        elif kinds in (["Identity"], ["Cast"], ["Dropout"], ["Reshape"]):
            value = users[0].outputs[0]
        elif "MatMul" in kinds:
            raise _No("the attention probabilities are used elsewhere too")
        else:
            return None
    return None


def _is_guarded(softmax: ir.Node) -> bool:
    """Whether rows that see nothing give zeros."""
    return any(use.node.op_type == "IsNaN" for use in softmax.outputs[0].uses())


def _is_nan_guard(where: ir.Node, value: ir.Value) -> bool:
    condition, fill, kept = where.inputs
    test = condition.producer() if condition is not None else None
    is_test = test is not None and test.op_type == "IsNaN" and test.inputs[0] is value
    return is_test and scalar(fill) == 0.0 and kept is value


def _score_product(value: ir.Value | None, depth: int = _DEEPEST) -> ir.Node | None:
    """The MatMul of two computed operands that scores come from, a few steps upstream."""
    for left in range(depth, 0, -1):
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type == "MatMul":
            computed = all(i is not None and i.producer() is not None for i in node.inputs)
            return node if computed else None
        value = _towards_product(node, left - 1)
    return None


def _towards_product(node: ir.Node, depth: int) -> ir.Value | None:
    """The operand of an element-wise node that scores flow through."""
    if node.op_type in {"Tanh", "Cast", "Identity", "Reshape"}:
        return node.inputs[0]
    if node.op_type == "Where":
        kept, other = node.inputs[1], node.inputs[2]
        return other if _is_hidden_fill(kept) else kept
    if node.op_type in {"Mul", "Div", "Add", "Sub"}:
        left, right = node.inputs
        if left is None or scalar(right) is not None:
            return left
        if scalar(left) is not None:
            return right
        return left if _leads_to_product(left, depth) else right
    return None


def _leads_to_product(value: ir.Value, depth: int = _DEEPEST) -> bool:
    return _score_product(value, depth) is not None


def _is_hidden_fill(value: ir.Value | None) -> bool:
    array = constant(value)
    if array is None or array.dtype.kind != "f":
        return False
    part = visible_part(np.atleast_1d(array))
    return part is not None and not part.any()


def _is_finite(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and bool(np.isfinite(array).all())


def _read_scores(
    value: ir.Value | None, product: ir.Value
) -> tuple[float, float, tuple[MaskTerm, ...]]:
    """Walk from the Softmax input down to the product: masks, then softcap, then scale."""
    masks: list[MaskTerm] = []
    while value is not None and value is not product:
        node = value.producer()
        if node is None or not _is_only_used_by_scores(value):
            raise _No("the attention scores are used elsewhere too")
        if node.op_type in {"Reshape", "Cast", "Identity"}:
            value = node.inputs[0]
            continue
        term, below = _mask_term(node)
        if term is None:
            break
        masks.append(term)
        value = below
    if value is None:
        raise _No("the scores cannot be followed to a product")
    softcap, scale, value = _softcap(value)
    if value is not product:
        node = value.producer()
        raise _No(f"'{node.op_type if node else '?'}' between the score product and the Softmax")
    return scale, softcap, tuple(reversed(masks))


def _is_only_used_by_scores(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _mask_term(node: ir.Node) -> tuple[MaskTerm | None, ir.Value | None]:
    if node.op_type == "Where":
        condition, kept, other = node.inputs
        if condition is not None and _is_hidden_fill(other):
            return MaskTerm(condition, finite=_is_finite(other)), kept
        if condition is not None and _is_hidden_fill(kept):
            return MaskTerm(condition, negated=True, finite=_is_finite(kept)), other
        return None, None
    if node.op_type == "Add":
        left, right = node.inputs
        if left is not None and right is not None and scalar(left) is None:
            if _leads_to_product(left):
                return MaskTerm(right, finite=True), left
            return MaskTerm(left, finite=True), right
    return None, None


def _softcap(value: ir.Value) -> tuple[float, float, ir.Value]:
    """Read `c * tanh(k * s)` as (c, c * k, s), and `k * s` as (0, k, s)."""
    inner, factor = unscaled(value)
    node = inner.producer()
    if node is None or node.op_type != "Tanh" or node.inputs[0] is None:
        return 0.0, factor, inner
    below, slope = unscaled(node.inputs[0])
    return abs(factor), factor * slope, below
