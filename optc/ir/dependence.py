"""Which inputs' contents a value is computed from, for a whole graph at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

__all__ = ["Reads", "inputs_read", "operands"]

Reads = Mapping[ir.Value | None, frozenset[ir.Value]]
"""Graph inputs by value; a value that is not there depends on no input's contents."""


def inputs_read(model: ir.Model) -> Reads:
    """The graph inputs whose contents (not only whose sizes) each value depends on.

    Args:
        model: The model; its main graph must be in topological order. What a branch or a loop
            reads from outside counts for all outputs of its node.
    """
    reads: dict[ir.Value | None, frozenset[ir.Value]] = {
        value: frozenset({value}) for value in model.graph.inputs if value.const_value is None
    }
    for node in model.graph:
        if node.op_type in {"Shape", "Size"} and not node.domain:
            continue
        found = frozenset[ir.Value]().union(*(reads.get(v, frozenset()) for v in operands(node)))
        if found:
            reads |= dict.fromkeys(node.outputs, found)
    return reads


def operands(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node reads, itself or in a branch or a loop."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from inner.inputs
