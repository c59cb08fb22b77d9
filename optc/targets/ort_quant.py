"""Lower standard Q/DQ to the integer kernels of ONNX Runtime's CPU provider.

1. An int8 weight that meets 8-bit activations, per tensor or per token: `MatMulIntegerToFloat`. The
   runtime's own fusion finds this only where an activation has one reader; q, k and v share theirs.
2. A 4- or 8-bit weight, by channel or by group, that meets a float activation: `MatMulNBits`.
3. A lookup in such a table: `GatherBlockQuantized` on the very bytes that the tied `MatMulNBits`
   reads. In an int8 table that is not tied: of integers, of scales, and their product.

No path converts a whole weight at run time. Weights change their layout when the model is saved, a
few channels at a time.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.targets.ort_quant_blocks import BlockKernels
from optc.targets.ort_quant_integers import IntegerProducts
from optc.targets.ort_quant_layout import block_length
from optc.targets.ort_quant_match import Weight, read_weight, readers, rounded_input
from optc.targets.ort_quant_replace import DOMAIN, Replacer
from optc.targets.ort_quant_tokens import rounded_tokens

__all__ = ["lower_quant"]


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
        model.opset_imports[DOMAIN] = 1
        model.graph.opset_imports[DOMAIN] = 1
        common.RemoveUnusedNodesPass()(model)
    return lowering.replaced


class _Lowering:
    """The lowering of one graph."""

    def __init__(self, model: ir.Model):
        self._put = Replacer(model)
        self._integers = IntegerProducts(self._put)
        self._blocks = BlockKernels(self._put)

    @property
    def replaced(self) -> int:
        """Number of nodes replaced."""
        return self._put.count

    def lower(self, weight: Weight) -> None:
        """Replace all readers of one weight that are understood; its layout is made once."""
        products, lookups = readers(weight)
        rounded = [rounded_input(node) or rounded_tokens(node) for node in products]
        narrow = [activation for activation in rounded if activation is not None]
        takes_integers = weight.is_plain and weight.dtype == ir.DataType.FLOAT and not lookups
        if takes_integers and products and len(narrow) == len(products):
            matrix = self._integers.matrix(weight)
            for node, activation in zip(products, narrow, strict=True):
                self._integers.replace(node, weight, matrix, activation)
            return
        length = block_length(weight)
        tied = bool(products) or not weight.is_plain
        by_block = [node for node in lookups if tied and _has_rank(node.inputs[1])]
        if length is not None and (products or by_block):
            blocks = self._blocks.blocks(weight, length)
            self._blocks.multiply(products, blocks, rounded)
            self._blocks.look_up(by_block, blocks)
        by_row = [node for node in lookups if node not in by_block]
        if weight.is_plain and by_row:
            self._blocks.look_up_rows(by_row, weight)


def _has_rank(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None
