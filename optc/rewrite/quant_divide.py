"""Divide the channels of an activation by constants, for nothing where that is possible.

The weights behind it were multiplied by the same constants, so the product stays what it was.

1. A normalisation, or a product with a constant per channel: the constant is divided.
2. A product with the output of a layer that has an int8 weight, read nowhere else: the scale of
   each output channel of that weight is divided. Its integers stay what they are.
3. Anything else, or an activation that others read too: a Mul is inserted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_sites import Site

__all__ = ["Divider"]

_NORMALISATIONS = {"RMSNormalization", "LayerNormalization"}


class Divider:
    """Divides activations of one graph.

    Args:
        writer: Adds to the graph.
        scales: Nodes whose weight is int8 and theirs alone, with the scale of that weight.
    """

    def __init__(self, writer: NodeWriter, scales: Mapping[ir.Node, ir.Value]):
        self._writer = writer
        self._scales = scales

    def divide(self, value: ir.Value, readers: Sequence[Site], factors: Array) -> ir.Value:
        """`value` with channel k divided by `factors[k]`, for `readers` only."""
        node = value.producer()
        users = {user for user, _ in value.uses()}
        is_theirs = users == {site.node for site in readers} and not value.is_graph_output()
        if node is not None and is_theirs:
            if node.op_type in _NORMALISATIONS and self._divide_constants(node, (1, 2), factors):
                return value
            if node.op_type == "Mul" and self._divide_product(node, factors):
                return value
        inverse = self._writer.constant(
            f"{value.name}_inverse", ir.Tensor(_cast(1 / factors, value.dtype))
        )
        product = ir.node("Mul", [value, inverse])
        return self._writer.insert(product, f"{value.name}_even", value, before=readers[0].node)

    def _divide_product(self, node: ir.Node, factors: Array) -> bool:
        for slot in (0, 1):
            if self._divide_constants(node, (slot,), factors):
                return True
        return any(self._divide_layer(operand, node, factors) for operand in node.inputs)

    def _divide_constants(self, node: ir.Node, slots: Sequence[int], factors: Array) -> bool:
        """Case 1: all given operands that the node has must be constants per channel."""
        operands = [(s, node.inputs[s]) for s in slots if s < len(node.inputs)]
        given = [(slot, value) for slot, value in operands if value is not None]
        if not given or not all(_is_per_channel(value, len(factors)) for _, value in given):
            return False
        for slot, value in given:
            tensor = value.const_value
            if tensor is None:
                return False
            divided = ir.Tensor(_cast(tensor.numpy() / factors, tensor.dtype))
            node.replace_input_with(slot, self._writer.constant(f"{value.name}_even", divided))
        return True

    def _divide_layer(self, value: ir.Value | None, reader: ir.Node, factors: Array) -> bool:
        """Case 2."""
        layer = value.producer() if value is not None else None
        if value is None or layer is None or layer not in self._scales:
            return False
        is_only_reader = [user for user, _ in value.uses()] == [reader]
        scale = self._scales[layer]
        tensor = scale.const_value
        if layer.op_type != "MatMul" or not is_only_reader or value.is_graph_output():
            return False
        if tensor is None:
            return False
        divided = _divided(tensor, layer, factors)
        if divided is None:
            return False
        scale.const_value = ir.Tensor(_cast(divided, tensor.dtype), name=scale.name)
        return True


def _divided(scale: ir.TensorProtocol, layer: ir.Node, factors: Array) -> Array | None:
    """A scale [C], or [C,G] or [G,C] of groups, with that of channel c divided by `factors[c]`."""
    array: Array = scale.numpy().astype(np.float32)
    if array.ndim == 1:
        return array / factors if len(array) == len(factors) else None
    matrix = layer.inputs[1]
    made_by = None if matrix is None else matrix.producer()
    is_flipped = made_by is not None and made_by.op_type == "Transpose"
    axis = 0 if is_flipped else 1
    if array.shape[axis] != len(factors):
        return None
    divided: Array = array / np.expand_dims(factors, 1 - axis)
    return divided


def _is_per_channel(value: ir.Value, channels: int) -> bool:
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_input():
        return False
    return tensor.size == channels and tensor.shape[-1] == channels


def _cast(array: Array, dtype: ir.DataType | None) -> Array:
    return array.astype(dtype.numpy() if dtype is not None else np.float32)
