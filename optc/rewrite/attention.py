"""Find attention in a graph: the standard op, or its parts around a Softmax.

Decomposed attention is read from the Softmax outwards, over use-def edges:

    scores = softcap(scale * (Q @ K^T)) + masks        softcap and masks (Add, Where) optional
    P = Softmax(scores), perhaps guarded by Where(IsNaN(P), 0, P)
    output = P @ V

Products may be over [B*H,S,D] (`flat`), with reshapes to [B,H,S,T] and back in between.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.core.base import Refusal
from optc.ir.constants import scalar
from optc.rewrite.movement import unscaled
from optc.rewrite.scores import MaskTerm, NotFused, read_scores, score_product

__all__ = ["AttentionMatch", "match_attention"]


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
    except NotFused as reason:
        return Refusal(str(node.outputs[0].name), str(reason))
    return None


def _standard(node: ir.Node) -> AttentionMatch:
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    query, key, value, mask, past, _, lengths = inputs[:7]
    if query is None or key is None or value is None or query.shape is None:
        raise NotFused("the shape of the query is not known")
    if query.shape.rank() != 4:
        raise NotFused(f"the query has rank {query.shape.rank()}, only [B,H,S,D] is understood")
    if past is not None or lengths is not None:
        raise NotFused("the export already has a key/value cache; export it with use_cache=False")
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        raise NotFused("the attention scores or the cache are used elsewhere")
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
        raise NotFused("the head size is not known")
    return float(size**-0.5)


def _decomposed(softmax: ir.Node) -> AttentionMatch | None:
    product = _product_with_values(softmax)
    scores = score_product(softmax.inputs[0])
    if product is None or scores is None:
        return None
    probabilities, values = product.inputs
    if values is None or probabilities is None or scores.inputs[1] is None:
        return None
    rank = values.shape.rank() if values.shape is not None else None
    if rank not in (3, 4):
        raise NotFused(f"the values have rank {rank or 'unknown'}, not [B,H,T,D] or [B*H,T,D]")
    if not _is_over_last_axis(softmax):
        raise NotFused("the Softmax is not over the keys")
    scale, softcap, masks = read_scores(softmax.inputs[0], scores.outputs[0])
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
            raise NotFused("the attention probabilities are used elsewhere too")
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
