"""Weights of 4 and 8 bits that meet float activations, and tables: the runtime's block kernels.

`MatMulNBits` at accuracy level 4 rounds each block of the activation to 8 bits as it goes, and is
bound by memory, not by arithmetic. `GatherBlockQuantized` looks up rows in the very bytes that a
tied `MatMulNBits` reads. Both take float16 activations with float16 scales as they are.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.ir.streamed import read_tensor
from optc.targets.ort_quant_layout import (
    block_count,
    block_scales,
    block_steps,
    block_zeros,
    lookup_zeros,
    transposed,
)
from optc.targets.ort_quant_match import Rounded, Weight, constant_tensor
from optc.targets.ort_quant_replace import DOMAIN, Replacer, added, bias_of
from optc.targets.ort_quant_tokens import Tokens

__all__ = ["BlockKernels", "Blocks"]

_ACCURACY = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """A weight as the block kernels take it.

    Attributes:
        weight: The weight.
        length: Block length, a power of two.
        steps: uint8 [C, blocks, bytes].
        scales: [C, blocks].
    """

    weight: Weight
    length: int
    steps: ir.Value
    scales: ir.Value


class BlockKernels:
    """Writes block kernels into one graph.

    Args:
        replacer: Puts them there.
    """

    def __init__(self, replacer: Replacer):
        self._put = replacer

    def blocks(self, weight: Weight, length: int) -> Blocks:
        """Give the graph the weight in blocks."""
        steps = self._put.writer.constant(f"{weight.name}_blocks", block_steps(weight, length))
        scales = self._put.writer.constant(f"{weight.name}_scales", block_scales(weight, length))
        return Blocks(weight, length, steps, scales)

    def multiply(self, nodes: list[ir.Node], blocks: Blocks, found: list[_Activation]) -> None:
        """Replace products; an activation that was rounded is taken as it was before."""
        weight = blocks.weight
        zeros = self._constant(f"{weight.name}_zeros", block_zeros(weight, blocks.length))
        attributes = {
            "K": weight.inner,
            "N": weight.outer,
            "bits": weight.bits,
            "block_size": blocks.length,
            "accuracy_level": _ACCURACY,
        }
        for node, rounded in zip(nodes, found, strict=True):
            source = node.inputs[0] if rounded is None else rounded.source
            bias, late = bias_of(node, weight.outer)
            inputs = [source, blocks.steps, blocks.scales, zeros, None, bias]
            while inputs[-1] is None:
                inputs.pop()
            product = ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN)
            self._put.replace(node, added(product, late))

    def look_up(self, nodes: list[ir.Node], blocks: Blocks) -> None:
        """Replace lookups whose indices have a known rank; [..., blocks, length] is joined."""
        weight, length = blocks.weight, blocks.length
        last = self._constant(f"{weight.name}_last", ir.Tensor(np.array([-1], np.int64)))
        zeros = self._constant(f"{weight.name}_lookup_zeros", lookup_zeros(weight, length))
        attributes = {
            "bits": weight.bits,
            "block_size": length,
            "quantize_axis": 2,
            "gather_axis": 0,
        }
        for node in nodes:
            column = ir.node("Unsqueeze", [blocks.scales, last])
            inputs = [blocks.steps, node.inputs[1], column.outputs[0]]
            inputs += [] if zeros is None else [zeros]
            found = ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN)
            self._put.replace(node, [column, found, *self._rows(node, blocks, found.outputs[0])])

    def _rows(self, node: ir.Node, blocks: Blocks, found: ir.Value) -> list[ir.Node]:
        """[..., blocks, length] as [..., K]; what the last block was filled up with is left out."""
        indices, weight = node.inputs[1], blocks.weight
        assert indices is not None
        assert indices.shape is not None
        width = block_count(weight, blocks.length) * blocks.length
        joined = np.array([0] * len(indices.shape) + [width], np.int64)
        shape = self._constant(f"{weight.name}_rows_shape", ir.Tensor(joined))
        rows = ir.node("Reshape", [found, shape])
        if width == weight.inner:
            return [rows]
        bounds = [("first", 0), ("end", weight.inner), ("axis", -1)]
        window = [
            self._constant(f"{weight.name}_{part}", ir.Tensor(np.array([number], np.int64)))
            for part, number in bounds
        ]
        return [rows, ir.node("Slice", [rows.outputs[0], *window])]

    def look_up_rows(self, nodes: list[ir.Node], weight: Weight) -> None:
        """Replace lookups in an int8 table: rows of integers [..., K] times their scale."""
        integers = weight.integers
        if weight.axis:
            integers = self._put.writer.constant(f"{weight.name}_rows", transposed(weight))
        scales = read_tensor(constant_tensor(weight.scale))[:, None]
        column = self._put.writer.constant(f"{weight.name}_column", ir.Tensor(np.array(scales)))
        for node in nodes:
            rows = ir.node("Gather", [integers, node.inputs[1]])
            factor = ir.node("Gather", [column, node.inputs[1]])
            wide = ir.node("Cast", [rows.outputs[0]], {"to": int(weight.dtype)})
            product = ir.node("Mul", [wide.outputs[0], factor.outputs[0]])
            self._put.replace(node, [rows, factor, wide, product])

    def _constant(self, name: str, tensor: ir.TensorProtocol | None) -> ir.Value | None:
        return None if tensor is None else self._put.writer.constant(name, tensor)


_Activation = Rounded | Tokens | None
