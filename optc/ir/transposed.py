"""Weights that a graph transposes before it uses them, transposed once and for all.

Exporters write a linear layer as `MatMul(x, Transpose(w))`. Of a weight that nothing else reads,
the transposition is done when the model is written, a block at a time.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.core.context import Array
from optc.ir.streamed import StreamedTensor, read_part, sizes

__all__ = ["fold_transposed_weights"]

# A block of a transposed weight takes a few bytes of each row of the weight; larger blocks than
# usual are what makes it worth the walk through the file.
_LARGER_BLOCKS = 4


def fold_transposed_weights(model: ir.Model, larger_than: int) -> int:
    """Replace each transposition of a weight of two axes that nothing else reads.

    Args:
        model: Changed in place; its main graph is looked at.
        larger_than: Weights of so many elements or fewer are left to others.

    Returns:
        How many were replaced.
    """
    found = [node for node in model.graph if _is_of_weight(node, larger_than)]
    for node in found:
        _fold(model.graph, node)
    return len(found)


def _is_of_weight(node: ir.Node, larger_than: int) -> bool:
    if node.op_type != "Transpose" or node.domain or node.outputs[0].is_graph_output():
        return False
    weight = node.inputs[0]
    if weight is None or not weight.is_initializer() or weight.is_graph_input():
        return False
    tensor = weight.const_value
    alone = len(weight.uses()) == 1 and not weight.is_graph_output()
    return alone and tensor is not None and len(tensor.shape) == 2 and tensor.size > larger_than


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    weight, output = node.inputs[0], node.outputs[0]
    if weight is None or weight.const_value is None or output.name is None:
        raise ValueError("not a transposition of a weight")
    perm = node.attributes.get_ints("perm", [1, 0])
    tensor = weight.const_value
    if list(perm) == [1, 0]:
        tensor = _transposed(tensor)
    name = output.name
    shape = ir.Shape(sizes(tensor))
    made = ir.Value(name=name, const_value=tensor, type=weight.type, shape=shape)
    tensor.name = name
    output.name = f"{name}_before"
    ir.convenience.replace_all_uses_with(output, made)
    graph.remove(node, safe=True)
    del graph.initializers[str(weight.name)]
    graph.register_initializer(made)


def _transposed(tensor: ir.TensorProtocol) -> StreamedTensor:
    outer, inner = sizes(tensor)

    def part(rows: slice, columns: slice) -> Array:
        return read_part(tensor, columns, rows).T

    row_bytes = max(1, tensor.dtype.itemsize * outer // _LARGER_BLOCKS)
    return StreamedTensor(part, tensor.dtype, (inner, outer), row_bytes=int(row_bytes))
