"""From the input of a Softmax down to the product of queries and keys that it is of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.ir.bands import visible_part
from optc.ir.constants import constant, scalar

__all__ = ["DEEPEST", "VIEWS", "foreign_node", "hides_always", "score_product", "towards_product"]

DEEPEST = 24
_UNDERSTOOD = {"Add", "Clip", "Div", "Max", "Mul", "ReduceMax", "Sub", "Tanh", "Where"}
VIEWS = {"Reshape", "Cast", "Identity", "Dropout", "Flatten", "Squeeze", "Unsqueeze"}
_UNDERSTOOD |= VIEWS
_Known = dict[ir.Value, ir.Node | None]


def score_product(
    value: ir.Value | None, depth: int = DEEPEST, known: _Known | None = None
) -> ir.Node | None:
    """The product of queries and keys that scores come from, some steps upstream.

    Args:
        value: The scores.
        depth: How many nodes are looked at.
        known: What was found for other values already.
    """
    known = {} if known is None else known
    if value is None or not depth:
        return None
    if value not in known:
        known[value] = None
        node = value.producer()
        if node is not None and not node.domain and node.op_type == "MatMul":
            known[value] = node if _is_of_data(node) else None
        elif node is not None and not node.domain:
            known[value] = score_product(towards_product(node, depth - 1, known), depth - 1, known)
    return known[value]


def foreign_node(
    value: ir.Value | None, depth: int = 8, foreign: ir.Node | None = None
) -> ir.Node | None:
    """A node that is not understood on the way down to a product of data, if there is one.

    Where every node is one that scores may go through, but not in this way, it is the product.
    """
    node = value.producer() if value is not None else None
    if node is None or not depth or node.op_type in {"Gemm", "Conv"}:
        return None
    if node.op_type == "Einsum":
        weights = [v is None or v.is_initializer() for v in node.inputs]
        return node if len(weights) > 1 and not any(weights) else None
    if node.op_type == "MatMul":
        return (foreign or node) if _is_of_data(node) else None
    if node.op_type not in _UNDERSTOOD:
        foreign = foreign or node
    found = (foreign_node(below, depth - 1, foreign) for below in node.inputs)
    return next((one for one in found if one is not None), None)


def _is_of_data(product: ir.Node) -> bool:
    """Whether it is no projection: weights are constant."""
    right = product.inputs[1]
    for _ in range(DEEPEST):
        if right is None or right.is_initializer():
            return False
        producer = right.producer()
        if producer is None:
            return True
        if producer.op_type not in VIEWS | {"Transpose", "DequantizeLinear", "Constant"}:
            return True
        if producer.op_type == "Constant":
            return False
        right = producer.inputs[0]
    return True


def towards_product(node: ir.Node, depth: int, known: _Known | None = None) -> ir.Value | None:
    """The operand of an element-wise node that scores flow through."""
    if node.op_type in VIEWS | {"Tanh", "Max", "Clip"}:
        return node.inputs[0]
    if node.op_type == "Where":
        kept, other = node.inputs[1], node.inputs[2]
        return other if hides_always(kept) else kept
    if node.op_type in {"Mul", "Div", "Add", "Sub"}:
        left, right = node.inputs
        if left is None or scalar(right) is not None:
            return left
        if scalar(left) is not None:
            return right
        return left if score_product(left, depth, known) is not None else right
    return None


def hides_always(value: ir.Value | None) -> bool:
    """Whether a constant hides every score that it is put in the place of."""
    array = constant(value)
    if array is None or array.dtype.kind != "f":
        return False
    part = visible_part(np.atleast_1d(array))
    return part is not None and not part.any()
