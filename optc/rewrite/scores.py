"""The scores of decomposed attention: from the Softmax down to the product of queries and keys."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.ir.constants import constant, scalar
from optc.ir.masks import visible_part
from optc.rewrite.movement import unscaled

__all__ = ["MaskTerm", "NotFused", "read_scores", "score_product"]

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


class NotFused(Exception):
    """Not fused; the text is the reason."""


def score_product(value: ir.Value | None, depth: int = _DEEPEST) -> ir.Node | None:
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
    return score_product(value, depth) is not None


def _is_hidden_fill(value: ir.Value | None) -> bool:
    array = constant(value)
    if array is None or array.dtype.kind != "f":
        return False
    part = visible_part(np.atleast_1d(array))
    return part is not None and not part.any()


def _is_finite(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and bool(np.isfinite(array).all())


def read_scores(
    value: ir.Value | None, product: ir.Value
) -> tuple[float, float, tuple[MaskTerm, ...]]:
    """Walk from the Softmax input down to the product: masks, then softcap, then scale."""
    masks: list[MaskTerm] = []
    while value is not None and value is not product:
        node = value.producer()
        if node is None or not _is_only_used_by_scores(value):
            raise NotFused("the attention scores are used elsewhere too")
        if node.op_type in {"Reshape", "Cast", "Identity"}:
            value = node.inputs[0]
            continue
        term, below = _mask_term(node)
        if term is None:
            break
        masks.append(term)
        value = below
    if value is None:
        raise NotFused("the scores cannot be followed to a product")
    softcap, scale, value = _softcap(value)
    if value is not product:
        node = value.producer()
        raise NotFused(
            f"'{node.op_type if node else '?'}' between the score product and the Softmax"
        )
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
