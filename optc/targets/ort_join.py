"""Products of one activation become one product: q, k and v; gate and up.

`MatMulNBits` nodes that read the same activation on the same terms are joined along their output
channels, and the result is split again. One kernel rounds the activation once, has more to share
among threads than three, and is called once: 2 to 5 % of a decoding step (`docs/performance.md`).
Integer products (`MatMulIntegerToFloat`) are left apart: they gain as little from it as the copies
of the split cost them in prefill, which is what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.context import Array
from optc.ir.streamed import StreamedTensor, read_part, read_tensor, sizes
from optc.rewrite.quant_nodes import NodeWriter
from optc.targets.ort_quant_match import constant_tensor
from optc.targets.ort_quant_replace import DOMAIN

__all__ = ["join_products"]

_STEPS = 1
_BY_CHANNEL = (_STEPS, 2, 3, 5)  # and scales, zero points, bias: their first axis is N


def join_products(model: ir.Model) -> int:
    """Join products of one activation, in place.

    Args:
        model: A graph with the runtime's kernels. Weights that have other readers stay apart: a
            tied table would be stored twice.

    Returns:
        Number of products that are now part of another.
    """
    groups: dict[object, list[ir.Node]] = {}
    for node in model.graph:
        if _may_join(node):
            groups.setdefault(_terms(node), []).append(node)
    together = [nodes for nodes in groups.values() if len(nodes) > 1]
    writer = NodeWriter(model)
    for nodes in together:
        _join(model.graph, writer, nodes)
    if together:
        common.RemoveUnusedNodesPass()(model)
    return sum(len(nodes) - 1 for nodes in together)


def _may_join(node: ir.Node) -> bool:
    """A product whose constants are constant, and whose weight is its own."""
    if (node.domain, node.op_type) != (DOMAIN, "MatMulNBits"):
        return False
    values = [_input(node, slot) for slot in _BY_CHANNEL]
    if any(value is not None and value.const_value is None for value in values):
        return False
    steps = node.inputs[_STEPS]
    return steps is not None and len(steps.uses()) == 1 and not steps.is_graph_output()


def _terms(node: ir.Node) -> object:
    """What joined products share: the activation, all options but N, and which inputs they have."""
    shared = tuple(id(v) for slot, v in enumerate(node.inputs) if slot not in _BY_CHANNEL)
    kinds = tuple(_kind(_input(node, slot)) for slot in _BY_CHANNEL)
    options = tuple(sorted((k, v.value) for k, v in node.attributes.items() if k != "N"))
    return shared, kinds, options


def _kind(value: ir.Value | None) -> object:
    """Type and sizes of a constant, but for how many channels it has."""
    if value is None:
        return None
    tensor = constant_tensor(value)
    return tensor.dtype, sizes(tensor)[1:]


def _join(graph: ir.Graph, writer: NodeWriter, nodes: Sequence[ir.Node]) -> None:
    first = nodes[0]
    channels = [node.attributes["N"].as_int() for node in nodes]
    product = _product(writer, nodes, sum(channels))
    lengths = writer.constant(f"{product.name}_channels", ir.Tensor(np.array(channels, np.int64)))
    split = ir.node("Split", [product.outputs[0], lengths], {"axis": -1}, num_outputs=len(nodes))
    split.name = writer.name(f"{product.name}_parted")
    graph.insert_before(first, [product, split])
    for node, part in zip(nodes, split.outputs, strict=True):
        old = node.outputs[0]
        part.name, old.name = old.name, f"{old.name}_apart"
        part.type, part.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, part, replace_graph_outputs=True)
    graph.remove(nodes, safe=True)


def _product(writer: NodeWriter, nodes: Sequence[ir.Node], channels: int) -> ir.Node:
    """The first of `nodes`, with the channels of all."""
    first = nodes[0]
    inputs = list(first.inputs)
    for slot in _BY_CHANNEL:
        values = [value for value in (_input(node, slot) for node in nodes) if value is not None]
        if values:
            whole = _joined([constant_tensor(value) for value in values])
            inputs[slot] = writer.constant(f"{values[0].name}_joined", whole)
    others = [option for option in first.attributes.values() if option.name != "N"]
    product = ir.Node(DOMAIN, first.op_type, inputs, [*others, ir.AttrInt64("N", channels)])
    product.name = product.outputs[0].name = writer.name(f"{first.outputs[0].name}_joined")
    product.outputs[0].type = first.outputs[0].type
    return product


def _joined(tensors: Sequence[ir.TensorProtocol]) -> ir.TensorProtocol:
    """Tensors one after the other; those of one axis, biases, are small and read at once."""
    if len(tensors[0].shape) == 1:
        return ir.Tensor(np.concatenate([read_tensor(tensor) for tensor in tensors]))
    starts = np.cumsum([0, *(sizes(tensor)[0] for tensor in tensors)]).tolist()
    total = starts.pop()

    def part(rows: slice, columns: slice) -> Array:
        first, last, _ = rows.indices(total)
        found = []
        for tensor, start in zip(tensors, starts, strict=True):
            window = slice(max(first - start, 0), min(last - start, sizes(tensor)[0]))
            if window.start < window.stop:
                found.append(read_part(tensor, window, columns))
        return np.concatenate(found)

    return StreamedTensor(part, tensors[0].dtype, (total, *sizes(tensors[0])[1:]))


def _input(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None
