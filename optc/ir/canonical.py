"""Bring a model from any exporter to the form that passes expect.

1. Constants are no inputs: files of IR version 3 list every one, and to a caller they are none.
   Model-local functions are inlined.
2. Axes get names that expressions can be written with; the default opset becomes 24.
3. Transposed weights become weights, in blocks and when they are written.
4. `RotaryEmbedding` tables get the batch of what they rotate: the opset-23 exporter gives them
   batch 1, which no runtime accepts for a larger batch.
5. Sizes are read from the inputs of the graph (`optc.ir.anchor`), shape arithmetic is folded.
6. Common subexpressions are merged, dead nodes and exporter metadata dropped.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx_ir.passes import PreconditionError

from optc.core.errors import ModelFileError
from optc.ir.anchor import anchor_sizes
from optc.ir.axis_names import name_axes
from optc.ir.branches import take_known_branches
from optc.ir.flash_attention import DOMAIN
from optc.ir.opsets import convert_opset
from optc.ir.shapes import SMALL, has_subgraphs, infer_shapes
from optc.ir.transposed import fold_transposed_weights

__all__ = ["OPSET", "canonicalize", "merge_common_parts"]

OPSET = 24


def canonicalize(model: ir.Model) -> None:
    """Apply the steps above, in place.

    Raises:
        ModelFileError: Functions call each other in a circle.
        UnsupportedError: The model's opset cannot be converted.
    """
    common.RemoveInitializersFromInputsPass()(model)
    if not any(domain == DOMAIN for domain, _, _ in model.functions):
        try:
            common.InlinePass()(model)
        except PreconditionError as error:
            raise ModelFileError("functions of the model call each other in a circle") from error
    name_axes(model)
    model.ir_version = max(model.ir_version or 0, 11)
    convert_opset(model, OPSET)
    common.ClearMetadataAndDocStringPass()(model)
    fold_transposed_weights(model, SMALL)
    if has_subgraphs(model):
        infer_shapes(model)
        take_known_branches(model)
    _drop_identities(model)
    infer_shapes(model)
    repair_rotary_batch(model)
    anchor_sizes(model)
    merge_common_parts(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    infer_shapes(model)


def _drop_identities(model: ir.Model) -> None:
    """Not beside subgraphs: a branch may return a value from outside only through one."""
    if not has_subgraphs(model):
        common.IdentityEliminationPass()(model)


def merge_common_parts(model: ir.Model) -> None:
    """Merge what is computed twice; not beside subgraphs, whose results it loses."""
    if not has_subgraphs(model):
        common.CommonSubexpressionEliminationPass()(model)


def repair_rotary_batch(model: ir.Model) -> int:
    """Expand batch-1 `RotaryEmbedding` tables (case 4); return how many tables were expanded."""
    expanded: dict[ir.Value, ir.Value] = {}
    shape: ir.Value | None = None
    for node in list(model.graph):
        if not _has_table_per_position(node):
            continue
        for index in (1, 2):
            rotated, table = node.inputs[0], node.inputs[index]
            if rotated is None or table is None or _same_batch(table, rotated):
                continue
            if shape is None:
                shape = _batch_shape(model, node, rotated)
            if table not in expanded:
                expanded[table] = _expand(model, node, table, shape)
            node.replace_input_with(index, expanded[table])
    return len(expanded)


def _has_table_per_position(node: ir.Node) -> bool:
    is_rotary = node.op_type == "RotaryEmbedding" and node.domain == ""
    count = len(node.inputs)
    return is_rotary and (count == 3 or (count == 4 and node.inputs[3] is None))


def _same_batch(table: ir.Value, rotated: ir.Value) -> bool:
    if table.shape is None or rotated.shape is None:
        return False
    first, batch = table.shape[0], rotated.shape[0]
    known = isinstance(first, int) or first.value is not None
    return known and first == batch


def _batch_shape(model: ir.Model, before: ir.Node, rotated: ir.Value) -> ir.Value:
    """The shape `[B, 1, 1]`, computed in front of `before`."""
    ones = ir.tensor([1, 1], dtype=ir.DataType.INT64, name="rotary_ones")
    batch = ir.node("Shape", [rotated], {"start": 0, "end": 1}, name="rotary_batch")
    const = ir.node("Constant", [], {"value": ones}, name="rotary_ones")
    shape = ir.node(
        "Concat", [batch.outputs[0], const.outputs[0]], {"axis": 0}, name="rotary_shape"
    )
    model.graph.insert_before(before, [batch, const, shape])
    return shape.outputs[0]


def _expand(model: ir.Model, before: ir.Node, table: ir.Value, shape: ir.Value) -> ir.Value:
    node = ir.node("Expand", [table, shape], name=f"{table.name}_batched")
    model.graph.insert_before(before, node)
    return node.outputs[0]
