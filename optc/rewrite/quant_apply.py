"""Write a quantisation plan into a graph, as standard QuantizeLinear / DequantizeLinear.

    weight, 8 or 4 bits, [C,K] --DequantizeLinear(scale, zero point)--> (Transpose) --> MatMul, ...
    activation --> QuantizeLinear(scale) --> DequantizeLinear(scale) --> MatMul or Gemm

A scale belongs to an output channel, or to a group of its inputs (`block_size`). One tensor of
steps and one DequantizeLinear serve every site that shares a constant; one pair of QuantizeLinear
and DequantizeLinear, or one rounding by token (`optc.rewrite.quant_tokens`), serves every site that
shares an activation. Where a plan divides the channels of an activation, see
`optc.rewrite.quant_divide` for where the division goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.rewrite.quant_divide import Divider
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import Site, weight_groups
from optc.rewrite.quant_stream import Constant
from optc.rewrite.quant_tokens import write_token_rounding

__all__ = ["apply_plan", "write_plan"]


def apply_plan(model: ir.Model, sites: Sequence[Site], plan: Plan) -> None:
    """Rewrite `model`, in place.

    Args:
        model: The graph that `sites` were found in.
        sites: All sites that the plan may touch.
        plan: What becomes of them.
    """
    write_plan(NodeWriter(model), sites, plan)
    common.RemoveUnusedNodesPass()(model)


def write_plan(writer: NodeWriter, sites: Sequence[Site], plan: Plan) -> set[str]:
    """The same, leaving behind what nothing reads any more: for many small plans in turn.

    Returns:
        Names of activations whose own values are divided by factors now: what makes them was
        changed, and nothing was put behind them.
    """
    touched = [site for site in sites if plan.width(site) != "float"]
    scales: dict[ir.Node, ir.Value] = {}
    for group in weight_groups(touched):
        scale, matrix = _write_weight(writer, group[0], plan)
        for site in group:
            _read_matrix(writer, site, matrix)
        if len(group) == 1:
            scales[group[0].node] = scale
    divider = Divider(writer, scales)
    readers: dict[ir.Value, list[Site]] = {}
    for site in touched:
        if site.activation is not None:
            readers.setdefault(site.activation, []).append(site)
    divided: set[str] = set()
    for activation, users in readers.items():
        value = activation
        factors = plan.divisor(users[0])
        if factors is not None:
            value = divider.divide(activation, users, factors)
            divided |= {str(activation.name)} if value is activation else set()
        narrow = [site for site in users if plan.is_narrow(site)]
        rounded = _round(writer, value, activation, narrow, plan) if narrow else value
        for site in users:
            site.node.replace_input_with(0, rounded if site in narrow else value)
    return divided


def _round(
    writer: NodeWriter, value: ir.Value, activation: ir.Value, users: Sequence[Site], plan: Plan
) -> ir.Value:
    """`value`, which is `activation` with its channels evened out, as the plan rounds it."""
    if activation.name in plan.tokens:
        return write_token_rounding(writer, value, before=users[0].node)
    fit = plan.activations[str(activation.name)]
    return _write_rounding(writer, value, fit, before=users[0].node)


def _write_weight(writer: NodeWriter, site: Site, plan: Plan) -> tuple[ir.Value, ir.Value]:
    """The scale of the quantised weight, and the dequantised matrix in the constant's layout."""
    source, tensor = site.weight, site.weight.const_value
    if tensor is None:
        raise ValueError(f"the plan names '{source.name}', which is not constant")
    grid = plan.weights[str(source.name)]
    constant = Constant(tensor, site.axis, plan.divisor(site))
    steps, scales, zeros = constant.write(grid, plan.solved.get(str(source.name)))
    name = f"{source.name}_{grid.dtype.name.lower()}"
    scale = writer.constant(f"{source.name}_scale", scales)
    inputs = [writer.constant(name, steps), scale]
    if zeros is not None:
        inputs.append(writer.constant(f"{source.name}_zero", zeros))
    attributes = {"axis": site.axis}
    if grid.group:
        attributes = {"axis": 1 - site.axis, "block_size": grid.group}
    node = ir.node("DequantizeLinear", inputs, attributes)
    matrix = writer.insert(node, f"{source.name}_dequantized", source, before=site.node)
    return scale, matrix


def _read_matrix(writer: NodeWriter, site: Site, matrix: ir.Value) -> None:
    """Let `site` read `matrix` in place of its constant, through a Transpose if it had one."""
    read = site.node.inputs[site.slot]
    if read is not None and read is not site.weight:
        node = ir.node("Transpose", [matrix], {"perm": [1, 0]})
        matrix = writer.insert(node, f"{matrix.name}_transposed", read, before=site.node)
    site.node.replace_input_with(site.slot, matrix)


def _write_rounding(writer: NodeWriter, value: ir.Value, fit: Fit, *, before: ir.Node) -> ir.Value:
    """`value` on its grid: QuantizeLinear, then DequantizeLinear, with one scale."""
    dtype = value.dtype or ir.DataType.FLOAT
    scale = writer.constant(f"{value.name}_scale", ir.Tensor(fit.scale(dtype)))
    # A zero point is given, though it is zero: without one, onnxruntime fuses nothing.
    zero = writer.constant(f"{value.name}_zero", ir.Tensor(np.zeros((), fit.dtype.numpy())))
    down = ir.node("QuantizeLinear", [value, scale, zero])
    steps = writer.insert(down, f"{value.name}_{fit.dtype.name.lower()}", value, before=before)
    steps.type = ir.TensorType(fit.dtype)
    up = ir.node("DequantizeLinear", [steps, scale, zero])
    return writer.insert(up, f"{value.name}_dequantized", value, before=before)
