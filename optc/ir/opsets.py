"""Raise the default opset of a model without moving its numbers.

The converter of onnxscript knows what changed since opset 18; about older changes it is silent, and
only raises the number: the default axis of Softmax (13), the sizes of Split (13, 18), the axes of
Squeeze (13) and of the reductions (18) that turned from attributes into inputs. The converter of
ONNX knows these, but takes a whole serialized model. So older models go through it first, up to 18,
with every large weight an input for as long as that takes: weights stay in their file.
"""

from __future__ import annotations

import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import version_converter

from optc.core.errors import UnsupportedError

__all__ = ["convert_opset"]

_MIDDLE = 18
_SMALL = 1024  # elements or bytes that may be copied: converters read small constants


def convert_opset(model: ir.Model, opset: int) -> None:
    """Convert a model without functions to `opset`, 18 or newer, in place.

    Raises:
        UnsupportedError: It uses a newer opset, or something in it cannot be converted.
    """
    given = model.opset_imports.get("", 0)
    if given > opset:
        raise UnsupportedError(
            f"the model uses opset {given}, newer than {opset}",
            remedy=f"export it with opset_version={opset} or lower",
        )
    if given < opset:
        try:
            if given < _MIDDLE:
                _to_middle(model)
            version_converter.convert_version(model, opset)
        except Exception as error:  # converters raise whatever they like
            problem = f"opset {given} cannot be converted to {opset}: {error}"
            raise UnsupportedError(problem, remedy="export it with opset 18 or newer") from error
    if model.opset_imports.get("") != opset:
        raise UnsupportedError(f"opset {given} cannot be converted to {opset}")


def _to_middle(model: ir.Model) -> None:
    if "" not in model.opset_imports:
        raise ValueError("the model does not say which opset it uses")
    common.LiftConstantsToInitializersPass(size_limit=_SMALL)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    graph = model.graph
    inputs = {value.name for value in graph.inputs}
    weights = _weights_to_inputs(graph)
    converted = onnx.version_converter.convert_version(ir.to_proto(model), _MIDDLE)
    model.graph = ir.from_proto(converted).graph
    model.graph.name = graph.name
    for node in model.graph:
        for value in node.outputs:  # the converter names every size it does not know
            value.shape = value.shape if value.is_graph_output() else None
    for value in list(model.graph.inputs):
        if value.name not in inputs:
            model.graph.inputs.remove(value)
        if value.name in weights:
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)


def _weights_to_inputs(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Make every large or external initializer an input; return their data."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or (
            tensor.nbytes <= _SMALL and not isinstance(tensor, ir.ExternalTensor)
        ):
            continue
        weights[name] = tensor
        value.type = value.type or ir.TensorType(tensor.dtype)
        value.shape = value.shape or ir.Shape(tensor.shape.numpy())
        del graph.initializers[name]
        if value not in graph.inputs:
            graph.inputs.append(value)
    return weights
