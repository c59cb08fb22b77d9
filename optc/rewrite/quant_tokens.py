"""Round an activation to int8 with a range of its own for each token, in standard operators.

    scale = max(ReduceMax(Abs(x), last axis) / 127, smallest scale of its type)
    x ~ Cast(Cast(Round(x / scale), int8), float) * scale

A token with one large channel then costs no other token its steps (ZeroQuant, Yao et al., 2022,
arXiv 2206.01861). DynamicQuantizeLinear has one range for all tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.rewrite.quant_fit import LARGEST
from optc.rewrite.quant_grid import least_scale
from optc.rewrite.quant_nodes import NodeWriter

__all__ = ["write_token_rounding"]


def write_token_rounding(writer: NodeWriter, value: ir.Value, *, before: ir.Node) -> ir.Value:
    """`value` [..., K] as int8 steps times a scale [..., 1]; the nodes go before `before`."""
    dtype = value.dtype or ir.DataType.FLOAT
    kind = np.dtype(dtype.numpy())
    axes = writer.constant(f"{value.name}_last", ir.Tensor(np.array([-1], np.int64)))
    step = writer.constant(f"{value.name}_step", ir.Tensor(np.asarray(1 / LARGEST, kind)))
    least = writer.constant(f"{value.name}_least", ir.Tensor(least_scale(kind)))

    def add(op: str, inputs: list[ir.Value], wish: str, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        return writer.insert(node, f"{value.name}_{wish}", value, before=before)

    sizes = add("Abs", [value], "sizes")
    largest = add("ReduceMax", [sizes, axes], "largest", keepdims=1)
    scaled = add("Mul", [largest, step], "scaled")
    scale = add("Max", [scaled, least], "token_scale")
    for narrow in (largest, scaled, scale):
        narrow.shape = None if value.shape is None else ir.Shape([*list(value.shape)[:-1], 1])
    even = add("Div", [value, scale], "divided")
    near = add("Round", [even], "rounded")
    steps = add("Cast", [near], "int8", to=int(ir.DataType.INT8))
    steps.type = ir.TensorType(ir.DataType.INT8)
    back = add("Cast", [steps], "steps", to=int(dtype))
    return add("Mul", [back, scale], "dequantized")
