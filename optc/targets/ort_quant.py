"""Lower standard Q/DQ to the integer kernels of ONNX Runtime's CPU provider.

1. An int8 weight that meets an int8 activation: `MatMulIntegerToFloat`. The runtime's own fusion
   finds this only where an activation has one reader; q, k and v share theirs.
2. An int8 weight that meets a float activation: `MatMulNBits` with 8 bits, which rounds each block
   of the activation as it goes (accuracy level 4) and is bound by memory, not by arithmetic.
3. A lookup in an int8 table: `GatherBlockQuantized` on the very bytes that the tied `MatMulNBits`
   reads, else a lookup of integers, a lookup of scales, and their product.

No path converts a whole weight at run time. Weights change their layout when the model is saved.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.context import Array
from optc.ir.streamed import sizes
from optc.rewrite.quant_nodes import NodeWriter
from optc.targets.ort_quant_match import Rounded, Weight, read_weight, readers, rounded_input

__all__ = ["lower_quant"]

_DOMAIN = "com.microsoft"
_BLOCKS = (64, 32, 16)
_ACCURACY = 4
_MIDDLE = 128


def lower_quant(model: ir.Model) -> int:
    """Replace quantised products and lookups by the runtime's kernels.

    Args:
        model: A graph with standard Q/DQ; changed in place.

    Returns:
        Number of nodes replaced. What is not understood stays as it is, and runs.
    """
    lowering = _Lowering(model)
    for node in list(model.graph):
        weight = read_weight(node)
        if weight is not None:
            lowering.lower(weight)
    if lowering.replaced:
        model.opset_imports[_DOMAIN] = 1
        model.graph.opset_imports[_DOMAIN] = 1
        common.RemoveUnusedNodesPass()(model)
    return lowering.replaced


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """A weight as MatMulNBits takes it.

    Attributes:
        values: uint8 [C, blocks, length], 128 stands for zero.
        scales: float32 [C, blocks].
        length: Block length.
    """

    values: ir.Value
    scales: ir.Value
    length: int


class _Lowering:
    """The lowering of one graph."""

    def __init__(self, model: ir.Model):
        self._graph = model.graph
        self._writer = NodeWriter(model)
        self._moved: dict[ir.Node, tuple[ir.Value, ir.Value]] = {}
        self.replaced = 0

    def lower(self, weight: Weight) -> None:
        """Replace all readers of one weight that are understood; its layout is made once."""
        products, lookups = readers(weight)
        rounded = [rounded_input(node) for node in products]
        narrow = [activation for activation in rounded if activation is not None]
        if products and not lookups and len(narrow) == len(products):
            matrix = self._matrix(weight)
            for node, activation in zip(products, narrow, strict=True):
                self._to_integers(node, weight, matrix, activation)
            return
        blocks = self._blocks(weight) if products else None
        for node, before in zip(products, rounded, strict=True):
            if blocks is not None:
                self._to_blocks(node, weight, blocks, before)
        for node in lookups:
            if blocks is not None and weight.inner % blocks.length == 0:
                self._lookup_blocks(node, weight, blocks)
            else:
                self._lookup_rows(node, weight)

    def _to_integers(
        self, node: ir.Node, weight: Weight, matrix: ir.Value, activation: Rounded
    ) -> None:
        """Case 1."""
        integers, zero = self._unsigned(activation)
        inputs = [integers, matrix, activation.scale, weight.scale, zero]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        extra = [] if bias is None else [None, bias]
        new = ir.node("MatMulIntegerToFloat", [*inputs, *extra], domain=_DOMAIN)
        self._replace(node, [new])

    def _unsigned(self, activation: Rounded) -> tuple[ir.Value, ir.Value]:
        """The same grid, moved by 128 to uint8: on x86 the signed kernel is 14 to 35 times slower.

        Values stay what they are; the pair is made once for all readers of the activation.
        """
        down = activation.integers.producer()
        tensor = activation.zero.const_value
        if down is None or tensor is None or tensor.dtype != ir.DataType.INT8:
            return activation.integers, activation.zero
        if down not in self._moved:
            name = activation.integers.name
            middle = np.asarray(tensor.numpy().astype(np.int16) + _MIDDLE, np.uint8)
            zero = self._writer.constant(f"{name}_middle", ir.Tensor(middle))
            node = ir.node("QuantizeLinear", [activation.source, activation.scale, zero])
            value = self._writer.insert(node, f"{name}_moved", activation.integers, before=down)
            value.type = ir.TensorType(ir.DataType.UINT8)
            self._moved[down] = (value, zero)
        return self._moved[down]

    def _to_blocks(
        self, node: ir.Node, weight: Weight, blocks: _Blocks, activation: Rounded | None
    ) -> None:
        """Case 2; an activation that was rounded all the same is taken as it was before."""
        source = node.inputs[0] if activation is None else activation.source
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        extra = [] if bias is None else [None, None, bias]
        attributes = {
            "K": weight.inner,
            "N": weight.outer,
            "bits": 8,
            "block_size": blocks.length,
            "accuracy_level": _ACCURACY,
        }
        inputs = [source, blocks.values, blocks.scales, *extra]
        self._replace(node, [ir.node("MatMulNBits", inputs, attributes, domain=_DOMAIN)])

    def _lookup_blocks(self, node: ir.Node, weight: Weight, blocks: _Blocks) -> None:
        """Case 3, tied: the output [..., blocks, length] is joined to [..., K]."""
        indices = node.inputs[1]
        if indices is None or indices.shape is None:
            self._lookup_rows(node, weight)
            return
        scales = _block_scales(weight, blocks.length)[..., None]
        column = self._writer.constant(f"{weight.name}_columns", ir.Tensor(scales))
        attributes = {
            "bits": 8,
            "block_size": blocks.length,
            "quantize_axis": 2,
            "gather_axis": 0,
        }
        found = ir.node(
            "GatherBlockQuantized", [blocks.values, indices, column], attributes, domain=_DOMAIN
        )
        joined = np.array([0] * len(indices.shape) + [weight.inner], np.int64)
        shape = self._writer.constant(f"{weight.name}_joined", ir.Tensor(joined))
        self._replace(node, [found, ir.node("Reshape", [found.outputs[0], shape])])

    def _lookup_rows(self, node: ir.Node, weight: Weight) -> None:
        """Case 3, not tied: rows of integers [..., K] times their scale [..., 1]."""
        integers = weight.integers
        if weight.axis:
            integers = self._writer.constant(f"{weight.name}_rows", _transposed(weight))
        column = self._writer.constant(f"{weight.name}_column", ir.Tensor(weight.scales()[:, None]))
        rows = ir.node("Gather", [integers, node.inputs[1]])
        factor = ir.node("Gather", [column, node.inputs[1]])
        wide = ir.node("Cast", [rows.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        product = ir.node("Mul", [wide.outputs[0], factor.outputs[0]])
        self._replace(node, [rows, factor, wide, product])

    def _matrix(self, weight: Weight) -> ir.Value:
        """The integers as [K,C]."""
        if weight.axis == 1:
            return weight.integers
        return self._writer.constant(f"{weight.name}_columns", _transposed(weight))

    def _blocks(self, weight: Weight) -> _Blocks:
        length = next((b for b in _BLOCKS if weight.inner % b == 0), _BLOCKS[-1])
        values = self._writer.constant(f"{weight.name}_blocks", _packed(weight, length))
        scales = ir.Tensor(_block_scales(weight, length))
        return _Blocks(values, self._writer.constant(f"{weight.name}_scales", scales), length)

    def _replace(self, old: ir.Node, new: list[ir.Node]) -> None:
        for node in new[:-1]:
            name = self._writer.name(f"{old.outputs[0].name}_{node.op_type.lower()}")
            node.name = node.outputs[0].name = name
        new[-1].name = old.name
        ir.convenience.replace_nodes_and_values(
            self._graph, old, [old], new, old.outputs, new[-1].outputs
        )
        self.replaced += 1


def _transposed(weight: Weight) -> ir.LazyTensor:
    rows, columns = sizes(weight.tensor)

    def compute() -> ir.Tensor[Any]:
        return ir.Tensor(np.ascontiguousarray(weight.tensor.numpy().T))

    return ir.LazyTensor(compute, ir.DataType.INT8, ir.Shape([columns, rows]))


def _packed(weight: Weight, length: int) -> ir.LazyTensor:
    """uint8 [C, blocks, length]; K is filled up with zeros, which are 128."""
    count = -(-weight.inner // length)

    def compute() -> ir.Tensor[Any]:
        integers = weight.tensor.numpy()
        rows = integers if weight.axis == 0 else integers.T
        packed = np.full((weight.outer, count * length), _MIDDLE, np.uint8)
        packed[:, : weight.inner] = rows.view(np.uint8) ^ np.uint8(_MIDDLE)
        return ir.Tensor(packed.reshape(weight.outer, count, length))

    return ir.LazyTensor(compute, ir.DataType.UINT8, ir.Shape([weight.outer, count, length]))


def _block_scales(weight: Weight, length: int) -> Array:
    """[C, blocks]: the scale of each channel, for each of its blocks."""
    return np.repeat(weight.scales()[:, None], -(-weight.inner // length), axis=1)
