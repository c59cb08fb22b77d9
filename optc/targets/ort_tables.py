"""Tables of a lowered graph: constants whose rows are chosen by something computed."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["tables"]


def tables(model: ir.Model) -> Iterator[tuple[int, ir.Value]]:
    """Rows of each table of the main graph, and the value that chooses among them."""
    for node in model.graph:
        if node.op_type != "Gather" or node.domain or node.attributes.get_int("axis", 0) != 0:
            continue
        table, indices = node.inputs
        if table is None or table.const_value is None or indices is None:
            continue
        if table.is_initializer():
            yield table.const_value.shape.numpy()[0], indices
