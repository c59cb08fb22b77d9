"""A model of one canonical attention node."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime as ort
from attention_cases import OUTPUTS

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec, add_flash_attention


def attention_model(spec: AttentionSpec, inputs: dict[str, Array]) -> ir.Model:
    """All axes symbolic, so that one model takes any batch and any length."""
    values = {
        name: ir.val(name, ir.DataType.from_numpy(array.dtype), [None] * array.ndim)
        for name, array in inputs.items()
    }
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": 24}, name="attention")
    model = ir.Model(graph, ir_version=11)
    node = add_flash_attention(model, spec, values, name="site")
    graph.append(node)
    graph.outputs.extend(node.outputs)
    for output, name in zip(node.outputs, ("query", "past_key", "past_value"), strict=False):
        output.type = ir.TensorType(ir.DataType.from_numpy(inputs[name].dtype))
    return model


def run_attention(spec: AttentionSpec, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run the function body on ONNX Runtime, after the ONNX checker has seen it."""
    proto = ir.to_proto(attention_model(spec, inputs))
    onnx.checker.check_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(None, inputs), strict=False))
