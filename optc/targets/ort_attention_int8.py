"""Attention over an int8 cache on ONNX Runtime: one kernel for one new token, another for several.

For one new token `GroupQueryAttention` reads the integers and is faster than over float32. For
several it converts them anew for each query row, and is two to five times slower than the
function's body, which converts them once (`docs/decisions/0014-int8-caches.md`). An `If` on the
number of new tokens takes the better one; caches are updated in place in either branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optc.rewrite.quant_nodes import NodeWriter
from optc.targets.ort_attention_site import Site

__all__ = ["one_or_several"]

_SWAP = (0, 2, 1, 3)


def one_or_several(
    site: Site, one: ir.Value, grouped: ir.Node, rows: Sequence[ir.Value], writer: NodeWriter
) -> ir.Node:
    """An `If` with the outputs of `grouped`.

    Args:
        site: The canonical site.
        one: Whether there is one new token, bool [].
        grouped: The kernel for one token, not in a graph yet.
        rows: Query, key and value as [B,S,H*D].
        writer: Gives names.
    """
    branches = {
        "then_branch": _branch(site, "one", [grouped], grouped.outputs, writer),
        "else_branch": _several(site, rows, writer),
    }
    return ir.node("If", [one], branches, num_outputs=3)


def _several(site: Site, rows: Sequence[ir.Value], writer: NodeWriter) -> ir.Graph:
    """The function's body, between [B,S,H*D] and back."""
    nodes: list[ir.Node] = []
    operands: list[ir.Value] = []
    for value, sizes in zip(rows, (site.query, site.key, site.value), strict=True):
        heads = [size for size in (sizes[1], sizes[3]) if isinstance(size, int)]
        split = _reshape(nodes, value, [0, 0, *heads])
        operands.append(_append(nodes, ir.node("Transpose", [split], {"perm": _SWAP})))
    old = site.node
    inputs = [*operands, *old.inputs[3:]]
    call = ir.Node(
        old.domain,
        old.op_type,
        inputs,
        list(old.attributes.values()),
        overload=old.overload,
        num_outputs=3,
    )
    together = _append(nodes, ir.node("Transpose", [_append(nodes, call)], {"perm": _SWAP}))
    joined = _reshape(nodes, together, [0, 0, -1])
    return _branch(site, "several", nodes, [joined, *call.outputs[1:]], writer)


def _append(nodes: list[ir.Node], node: ir.Node) -> ir.Value:
    nodes.append(node)
    return node.outputs[0]


def _reshape(nodes: list[ir.Node], value: ir.Value, dims: list[int]) -> ir.Value:
    target = _append(nodes, ir.node("Constant", [], {"value_ints": dims}))
    return _append(nodes, ir.node("Reshape", [value, target]))


def _branch(
    site: Site,
    label: str,
    nodes: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    writer: NodeWriter,
) -> ir.Graph:
    name = f"{site.name}_{label}"
    for node in nodes:
        node.name = writer.name(name)
        for output in node.outputs:
            output.name = writer.name(f"{name}_{node.op_type.lower()}")
    kinds = ("query", "past_key", "past_value")
    for output, like in zip(outputs, kinds, strict=True):
        output.type = site.inputs[like].type
    return ir.Graph([], outputs, nodes=nodes, name=name)
