"""Shape inference that also knows how long a `Range` is.

`Range(0, Shape(x)[k], 1)` has as many elements as axis k of x. ONNX shape inference leaves that
length without a name, and with it the shape of everything that is added to a position embedding.
Exporters that write shape annotations name it; others do not.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.ir.constants import constant, scalar

__all__ = ["infer_shapes"]

_TRANSPARENT = {"Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast"}
_DEEPEST = 8


def infer_shapes(model: ir.Model) -> None:
    """Infer the shape of every value, in place.

    Inference invents names for what it does not know, and keeps them. So once lengths are found,
    what was inferred without them is forgotten and inferred again.
    """
    given = {v for node in model.graph for v in node.outputs if v.shape is not None}
    common.ShapeInferencePass()(model)
    lengths = _range_lengths(model, given)
    if not lengths:
        return
    for node in model.graph:
        for value in node.outputs:
            if value not in given and not value.is_graph_output():
                value.shape = None
    for value, dim in lengths.items():
        value.shape = ir.Shape([dim])
    common.ShapeInferencePass()(model)


def _range_lengths(model: ir.Model, given: set[ir.Value]) -> dict[ir.Value, int | ir.SymbolicDim]:
    found: dict[ir.Value, int | ir.SymbolicDim] = {}
    for node in model.graph:
        if node.op_type != "Range" or node.domain or node.outputs[0] in given:
            continue
        if len(node.inputs) != 3:  # not ONNX, which the checker says better
            continue
        start, limit, delta = node.inputs
        if scalar(start) != 0 or scalar(delta) != 1 or limit is None:
            continue
        dim = _dimension(limit)
        if dim is not None:
            found[node.outputs[0]] = dim
    return found


def _dimension(value: ir.Value) -> int | ir.SymbolicDim | None:
    """The dimension that a scalar was read from."""
    position = 0
    for _ in range(_DEEPEST):
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return None
        if node.op_type == "Shape":
            return _entry(node, position)
        if node.op_type in ("Gather", "Slice"):
            start = _start(node)
            if start is None or position < 0:  # the end of a slice is not looked at
                return None
            position += start
        elif node.op_type not in _TRANSPARENT:
            return None
        value = node.inputs[0]
    return None


def _start(node: ir.Node) -> int | None:
    """Where in its input the first entry that a Gather or Slice of a vector takes lies."""
    if node.op_type == "Gather":
        index = scalar(node.inputs[1])
        return None if index is None or node.attributes.get_int("axis", 0) != 0 else int(index)
    starts = constant(node.inputs[1])
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = constant(node.inputs[4])
        if steps is None or steps.size != 1 or steps.item() != 1:
            return None
    if starts is None or starts.size != 1 or starts.item() < 0:
        return None
    return int(starts.item())


def _entry(node: ir.Node, position: int) -> int | ir.SymbolicDim | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    dims = list(shape)[start:end]
    if not -len(dims) <= position < len(dims):
        return None
    dim = dims[position]
    return dim if isinstance(dim, int) or dim.value is not None else None
