"""Find attention in a graph: the standard op, or its parts around a Softmax.

Decomposed attention is read from the Softmax outwards, over use-def edges:

    P = Softmax(scores(Q @ K^T)), perhaps guarded by Where(IsNaN(P), 0, P)
    output = P @ V

Operands are [.., S, D] with any number of leading axes; `optc.rewrite.operands` brings them to
[B,H,S,D], `optc.rewrite.scores` reads what happens between the product and the Softmax.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.core.base import Refusal
from optc.ir.constants import scalar
from optc.rewrite.movement import unscaled
from optc.rewrite.score_product import foreign_node, score_product
from optc.rewrite.scores import MaskTerm, NotFused, keeps_last_axes, read_scores

__all__ = ["AttentionMatch", "match_attention"]

_WITHOUT = "export without output_attentions (need_weights in torch.nn.MultiheadAttention)"
_FUSED = {
    "Attention",
    "DecoderMaskedMultiHeadAttention",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
}


@dataclasses.dataclass(frozen=True)
class AttentionMatch:
    """One attention site, before its heads and masks are understood.

    Attributes:
        anchor: The standard op, or the Softmax.
        output: The value that the canonical op will replace, [.., S, Dv].
        query: [.., S, D], scalar factors stripped into `scale`.
        key: Second operand of the score product.
        key_transposed: Whether `key` is [.., D, T] rather than [.., T, D].
        value: [.., T, Dv], perhaps repeated.
        scale: Factor on the scores.
        softcap: Bound of the scores; 0.0 for none.
        causal: Whether the op itself says that it is causal.
        masks: Masks in the order applied.
        head_factors: Factors [.., 1, 1] per head on the scores.
        gates: Zeros and ones that the scores are multiplied by; a mask must hide the zeros.
        lengths: Number of valid keys of each row [B], where the op takes it.
        past: Keys and values [B,H,P,D] that the op puts before the new ones.
        presents: Outputs of the op that give all keys and values.
    """

    anchor: ir.Node
    output: ir.Value
    query: ir.Value
    key: ir.Value
    key_transposed: bool
    value: ir.Value
    scale: float
    softcap: float = 0.0
    causal: bool = False
    masks: tuple[MaskTerm, ...] = ()
    head_factors: tuple[ir.Value, ...] = ()
    gates: tuple[ir.Value, ...] = ()
    lengths: ir.Value | None = None
    past: tuple[ir.Value, ir.Value] | None = None
    presents: tuple[ir.Value, ...] = ()


def match_attention(node: ir.Node) -> AttentionMatch | Refusal | None:
    """Read the attention anchored at `node`.

    Returns:
        The match; a refusal if `node` anchors an attention that is not understood; None if it
        anchors no attention at all.
    """
    try:
        if node.domain == "com.microsoft" and node.op_type in _FUSED:
            raise NotFused(
                f"it is ONNX Runtime's own {node.op_type} already; "
                "give optc the file that the exporter wrote"
            )
        if node.domain == "" and node.op_type == "Attention":
            return _standard(node)
        if node.domain == "" and node.op_type == "Softmax":
            return _decomposed(node)
    except NotFused as reason:
        return Refusal(str(node.outputs[0].name), str(reason))
    return None


def _standard(node: ir.Node) -> AttentionMatch:
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    query, key, value, mask, past_key, past_value, lengths = inputs[:7]
    if query is None or key is None or value is None or query.shape is None:
        raise NotFused("the shape of the query is not known")
    if query.shape.rank() != 4:
        raise NotFused(f"the query has shape {query.shape}, and its number of heads is not known")
    if any(o.uses() or o.is_graph_output() for o in node.outputs[3:]):
        raise NotFused(f"the attention scores are used elsewhere too; {_WITHOUT}")
    past = (past_key, past_value) if past_key is not None and past_value is not None else None
    if past is not None and lengths is not None:
        raise NotFused("it has both a past and a number of valid keys")
    attributes = node.attributes
    scale = float(attributes.get_float("scale", 0.0)) or _default_scale(query)
    query, factor = unscaled(query)
    return AttentionMatch(
        anchor=node,
        output=node.outputs[0],
        query=query,
        key=key,
        key_transposed=False,
        value=value,
        scale=scale * factor,
        softcap=attributes.get_float("softcap", 0.0),
        causal=bool(attributes.get_int("is_causal", 0)),
        masks=(MaskTerm(mask),) if mask is not None else (),
        lengths=lengths,
        past=past,
        presents=tuple(node.outputs[1:3]),
    )


def _default_scale(query: ir.Value) -> float:
    size = query.shape[-1] if query.shape is not None else None
    if not isinstance(size, int):
        raise NotFused("the head size is not known")
    return float(size**-0.5)


def _decomposed(softmax: ir.Node) -> AttentionMatch | None:
    if not _reaches_product(softmax.outputs[0]):
        return None
    scores = score_product(softmax.inputs[0])
    if scores is None:
        if (node := foreign_node(softmax.inputs[0])) is not None:
            raise NotFused(_between(node))
        return None
    product, guarded = _product_with_values(softmax)
    query, key, values = scores.inputs[0], scores.inputs[1], product.inputs[1]
    if query is None or key is None or values is None:
        return None
    if not _is_over_last_axis(softmax):
        raise NotFused("the Softmax is not over the keys")
    read = read_scores(softmax.inputs[0], scores.outputs[0])
    masks = read.terms
    if guarded:
        masks = [dataclasses.replace(mask, guarded=True) for mask in masks]
    query, factor = unscaled(query)
    return AttentionMatch(
        anchor=softmax,
        output=product.outputs[0],
        query=query,
        key=key,
        key_transposed=True,
        value=values,
        scale=read.scale * factor,
        softcap=read.softcap,
        masks=tuple(masks),
        head_factors=tuple(read.head_factors),
        gates=tuple(read.gates),
    )


def _between(node: ir.Node) -> str:
    if node.op_type in {"MatMul", "Einsum"}:
        return "the scores cannot be followed from the Softmax to their product"
    sinks = "; attention sinks are not understood" if node.op_type == "Concat" else ""
    return f"'{node.op_type}' between the score product and the Softmax{sinks}"


def _reaches_product(value: ir.Value, depth: int = 6) -> bool:
    """Whether a few nodes downstream the value is the left operand of a product."""
    for use in value.uses() if depth else ():
        node = use.node
        if node.op_type in {"MatMul", "Einsum"}:
            if use.idx == 0:
                return True
        elif len(node.outputs) == 1 and _reaches_product(node.outputs[0], depth - 1):
            return True
    return False


def _is_over_last_axis(softmax: ir.Node) -> bool:
    axis, shape = softmax.attributes.get_int("axis", -1), softmax.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _product_with_values(softmax: ir.Node) -> tuple[ir.Node, bool]:
    """The MatMul that the probabilities go into, and whether hidden rows give zeros before it.

    Raises:
        NotFused: They go elsewhere.
    """
    value, guarded = softmax.outputs[0], False
    for _ in range(8):
        users = list(dict.fromkeys(use.node for use in value.uses()))
        kinds = sorted(user.op_type for user in users)
        if value.is_graph_output():
            raise NotFused(f"the attention probabilities are an output of the graph; {_WITHOUT}")
        if kinds == ["MatMul"] and users[0].inputs[0] is value:
            return users[0], guarded
        if kinds == ["IsNaN", "Where"] and _is_nan_guard(users, value):
            guarded = True
            value = next(user for user in users if user.op_type == "Where").outputs[0]
        elif kinds == ["Where"] and _hides_again(users[0], value, softmax):
            guarded = True
            value = users[0].outputs[0]
        elif kinds in (["Identity"], ["Cast"], ["Dropout"], ["Reshape"]):
            if not keeps_last_axes(users[0]):
                raise NotFused(f"'{kinds[0]}' changes the axes or the kind of the probabilities")
            value = users[0].outputs[0]
        elif len(kinds) > 1:
            raise NotFused(
                "the attention probabilities are used elsewhere too "
                f"({', '.join(kinds)}); if they are to be returned, {_WITHOUT}"
            )
        else:
            break
    last = [use.node.op_type for use in value.uses()]
    raise NotFused(f"the probabilities go into '{last[0] if last else 'nothing'}', not a product")


def _is_nan_guard(users: list[ir.Node], value: ir.Value) -> bool:
    where = next(user for user in users if user.op_type == "Where")
    condition, fill, kept = where.inputs
    test = condition.producer() if condition is not None else None
    is_test = test is not None and test.op_type == "IsNaN" and test.inputs[0] is value
    return is_test and scalar(fill) == 0.0 and kept is value


def _hides_again(where: ir.Node, value: ir.Value, softmax: ir.Node) -> bool:
    """`Where(m, 0, P)` with a mask that already hid the same scores before the Softmax."""
    below = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    if below is None or below.op_type != "Where" or below.inputs[0] is not where.inputs[0]:
        return False
    index = 1 if where.inputs[2] is value else 2  # where the zero is
    zero, fill = where.inputs[index], below.inputs[index]
    return scalar(zero) == 0.0 and (scalar(fill) or 0.0) < -1e4
