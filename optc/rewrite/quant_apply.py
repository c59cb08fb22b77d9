"""Write a quantisation plan into a graph, as standard QuantizeLinear / DequantizeLinear.

    weight int8 [C,K] --DequantizeLinear(scale [C], axis)--> (Transpose) --> MatMul, Gemm or Gather
    activation --> QuantizeLinear(scale) --> DequantizeLinear(scale) --> MatMul or Gemm

One integer tensor and one DequantizeLinear serve every site that shares a constant; one pair of
QuantizeLinear and DequantizeLinear serves every site that shares an activation. Where a plan
divides the channels of an activation, see `optc.rewrite.quant_divide` for where the division goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.context import Array
from optc.rewrite.quant_divide import Divider
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_sites import Site, weight_groups
from optc.rewrite.quant_weights import channel_scales, int8_tensor

__all__ = ["Plan", "apply_plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Widths of all sites.

    Attributes:
        weights: Names of the constants that become int8.
        activations: Names of the activations that become int8 where they meet an int8 weight.
    """

    weights: frozenset[str]
    activations: Mapping[str, Fit] = dataclasses.field(default_factory=dict)

    def width(self, site: Site) -> str:
        """`w8a8`, `w8` or `float`."""
        if site.weight.name not in self.weights:
            return "float"
        is_narrow = site.activation is not None and site.activation.name in self.activations
        return "w8a8" if is_narrow else "w8"


def apply_plan(model: ir.Model, sites: Sequence[Site], plan: Plan) -> None:
    """Rewrite `model`, in place.

    Args:
        model: The graph that `sites` were found in.
        sites: All sites that the plan may touch.
        plan: What becomes of them.
    """
    touched = [site for site in sites if plan.width(site) != "float"]
    narrow = [site for site in touched if plan.width(site) == "w8a8"]
    writer = NodeWriter(model)
    scales: dict[ir.Node, ir.Value] = {}
    for group in weight_groups(touched):
        factors = _factors(group[0], plan)
        scale, matrix = _write_weight(writer, group[0], factors)
        for site in group:
            _read_matrix(writer, site, matrix)
        if len(group) == 1:
            scales[group[0].node] = scale
    divider = Divider(writer, scales)
    readers: dict[ir.Value, list[Site]] = {}
    for site in narrow:
        if site.activation is not None:
            readers.setdefault(site.activation, []).append(site)
    for activation, users in readers.items():
        fit = plan.activations[str(activation.name)]
        value = activation
        if fit.factors is not None:
            value = divider.divide(activation, users, fit.factors)
        value = _write_rounding(writer, value, fit, before=users[0].node)
        for site in users:
            site.node.replace_input_with(0, value)
    common.RemoveUnusedNodesPass()(model)


def _factors(site: Site, plan: Plan) -> Array | None:
    """What the input channels of the weight are multiplied by."""
    fit = plan.activations.get(str(site.activation.name)) if site.activation is not None else None
    return None if fit is None else fit.factors


def _write_weight(
    writer: NodeWriter, site: Site, factors: Array | None
) -> tuple[ir.Value, ir.Value]:
    """The scale of the integer weight, and the dequantised matrix in the constant's layout."""
    source, tensor = site.weight, site.weight.const_value
    found = None if tensor is None else channel_scales(tensor, site.axis, factors)
    if tensor is None or found is None:
        raise ValueError(f"the plan names '{source.name}', which cannot be quantised")
    values = int8_tensor(tensor, found, site.axis, factors)
    integers = writer.constant(f"{source.name}_int8", values)
    scale = writer.constant(f"{source.name}_scale", ir.Tensor(found))
    node = ir.node("DequantizeLinear", [integers, scale], {"axis": site.axis})
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
    zero = writer.constant(f"{value.name}_zero", ir.Tensor(np.zeros((), np.int8)))
    down = ir.node("QuantizeLinear", [value, scale, zero])
    integers = writer.insert(down, f"{value.name}_int8", value, before=before)
    integers.type = ir.TensorType(ir.DataType.INT8)
    up = ir.node("DequantizeLinear", [integers, scale, zero])
    return writer.insert(up, f"{value.name}_dequantized", value, before=before)
