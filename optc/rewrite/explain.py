"""The part of a graph that makes up one attention, as text: where to look when it is not fused."""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.constants import constant

__all__ = ["attention_subgraph"]

_MOST = 40  # nodes that are shown
_ENDS = {"MatMul", "Gemm", "Einsum", "Conv"}
_AFTER = 6  # nodes downstream of the anchor
_FEW = 4  # entries of a constant that are shown


def attention_subgraph(anchor: ir.Node) -> tuple[str, ...]:
    """The nodes of a site in graph order, a line each.

    Args:
        anchor: The standard op, or the Softmax of decomposed attention.

    Returns:
        Lines such as `scores [b,4,s,s] = MatMul(q [b,4,s,8], k [b,4,8,s])`. The way up ends at
        products, the way down at the product with the values.
    """
    nodes = _upstream(anchor) | _downstream(anchor)
    graph = anchor.graph
    ordered = [node for node in graph if node in nodes] if graph is not None else [anchor]
    lines = [_line(node, marked=node is anchor) for node in ordered if node.op_type != "Constant"]
    hidden = len(lines) - _MOST
    return (*lines[-_MOST:], *([f"({hidden} nodes before these)"] if hidden > 0 else []))


def _upstream(anchor: ir.Node) -> dict[ir.Node, None]:
    found = {anchor: None}
    stack = [anchor]
    while stack and len(found) < 4 * _MOST:
        node = stack.pop()
        if node.op_type in _ENDS:
            continue
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in found and producer.op_type != "Shape":
                found[producer] = None
                stack.append(producer)
    return found


def _downstream(anchor: ir.Node) -> dict[ir.Node, None]:
    found: dict[ir.Node, None] = {}
    level = [anchor]
    for _ in range(_AFTER):
        users = [use.node for node in level for value in node.outputs for use in value.uses()]
        found |= dict.fromkeys(users)
        level = [node for node in users if node.op_type not in _ENDS]
    return found


def _line(node: ir.Node, *, marked: bool) -> str:
    inputs = ", ".join(_operand(value) for value in node.inputs)
    outputs = ", ".join(_named(value) for value in node.outputs)
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{'> ' if marked else '  '}{outputs} = {kind}({inputs})"


def _operand(value: ir.Value | None) -> str:
    array = constant(value)
    if array is not None and array.size <= _FEW:
        return str(array.tolist())
    return "" if value is None else _named(value)


def _named(value: ir.Value) -> str:
    return f"{value.name} {value.shape}" if value.shape is not None else f"{value.name} [?]"
