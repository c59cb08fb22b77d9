"""Tables of a lowered graph: constants whose rows are chosen by something computed."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["tables"]


def tables(model: ir.Model) -> Iterator[tuple[int, ir.Value]]:
    """Rows of each table of the main graph, and the value that chooses among them."""
    for node in model.graph:
        if node.op_type != "Gather" or node.domain:
            continue
        table, indices = node.inputs
        if table is None or table.const_value is None or indices is None:
            continue
        sizes = table.const_value.shape.numpy()
        chooses_rows = node.attributes.get_int("axis", 0) in (0, -len(sizes))
        if chooses_rows and table.is_initializer():
            yield sizes[0], indices
