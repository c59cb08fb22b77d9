"""Products of int8 weights with 8-bit activations: `MatMulIntegerToFloat`.

Signed activations are moved by 128 to uint8, on the same grid: on x86 the signed kernel is 14 to 35
times slower. An activation is moved once for all its readers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.targets.ort_quant_layout import transposed
from optc.targets.ort_quant_match import Rounded, Weight, constant_tensor
from optc.targets.ort_quant_replace import DOMAIN, Replacer, added, bias_of
from optc.targets.ort_quant_tokens import Tokens

__all__ = ["IntegerProducts"]

_MIDDLE = 128


class IntegerProducts:
    """Writes integer products into one graph.

    Args:
        replacer: Puts them there.
    """

    def __init__(self, replacer: Replacer):
        self._put = replacer
        self._moved: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._middle: ir.Value | None = None

    def matrix(self, weight: Weight) -> ir.Value:
        """The integers as [K,C]."""
        if weight.axis == 1:
            return weight.integers
        return self._put.writer.constant(f"{weight.name}_columns", transposed(weight))

    def replace(
        self, node: ir.Node, weight: Weight, matrix: ir.Value, activation: Rounded | Tokens
    ) -> None:
        """Multiply integers in the place of `node`.

        A bias is added by the kernel, or after it where tokens have scales of their own: the kernel
        (1.32) adds first and multiplies by such scales afterwards.
        """
        early, late = bias_of(node, weight.outer)
        if isinstance(activation, Tokens):
            integers, zero = self._by_token(activation, weight)
            early, late = None, early or late
        else:
            integers, zero = self._by_tensor(activation)
        inputs: list[ir.Value | None] = [integers, matrix, activation.scale, weight.scale, zero]
        if early is not None:
            inputs += [None, early]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN)
        self._put.replace(node, added(product, late))

    def _by_tensor(self, activation: Rounded) -> tuple[ir.Value, ir.Value]:
        """Integers as uint8, and the zero point."""
        down = activation.integers.producer()
        tensor = constant_tensor(activation.zero)
        if down is None or tensor.dtype != ir.DataType.INT8:
            return activation.integers, activation.zero
        if activation.integers not in self._moved:
            name = activation.integers.name
            middle = np.asarray(tensor.numpy().astype(np.int16) + _MIDDLE, np.uint8)
            zero = self._put.writer.constant(f"{name}_middle", ir.Tensor(middle))
            node = ir.node("QuantizeLinear", [activation.source, activation.scale, zero])
            self._moved[activation.integers] = (self._insert(node, activation.integers, down), zero)
        return self._moved[activation.integers]

    def _by_token(self, activation: Tokens, weight: Weight) -> tuple[ir.Value, ir.Value]:
        """The same, rounded in one step: each token is a block with a scale of its own."""
        down = activation.integers.producer()
        assert down is not None
        if self._middle is None:
            middle = np.array(_MIDDLE, np.uint8)
            self._middle = self._put.writer.constant("middle", ir.Tensor(middle))
        if activation.integers not in self._moved:
            zeros: ir.Value = self._middle
            blocks: dict[str, int] = {}
            shape = activation.source.shape
            if shape is None or len(shape) > 1:  # [K] is one token, and blocks are of two axes
                zeros = self._middles(activation, down)
                blocks = {"axis": -1, "block_size": weight.inner}
            node = ir.node("QuantizeLinear", [activation.source, activation.scale, zeros], blocks)
            moved = self._insert(node, activation.integers, down)
            self._moved[activation.integers] = (moved, self._middle)
        return self._moved[activation.integers]

    def _middles(self, activation: Tokens, down: ir.Node) -> ir.Value:
        """The zero point, once for each token."""
        name = activation.integers.name
        size = ir.node("Shape", [activation.scale])
        sizes = self._put.writer.insert(size, f"{name}_sizes", ir.Value(), before=down)
        spread = ir.node("Expand", [self._middle, sizes])
        return self._put.writer.insert(spread, f"{name}_middles", ir.Value(), before=down)

    def _insert(self, node: ir.Node, like: ir.Value, before: ir.Node) -> ir.Value:
        value = self._put.writer.insert(node, f"{like.name}_moved", like, before=before)
        value.type = ir.TensorType(ir.DataType.UINT8)
        return value
