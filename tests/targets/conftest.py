from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optc.ir.flash_attention import AttentionSpec, add_flash_attention
from optc.ir.interface import LENGTHS, past_name, present_name


def give_weights(model: ir.Model, *names: str) -> ir.Model:
    """Turn the inputs called `names` into initializers with random float32 data."""
    rng = np.random.default_rng(0)
    for value in [value for value in model.graph.inputs if value.name in names]:
        array = rng.standard_normal(value.shape.numpy()).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


@pytest.fixture
def linear() -> ir.Model:
    """y = relu(x @ w) + b, with a weight that is stored outside the file."""
    text = """<ir_version: 11, opset_import: ["": 24]>
    linear (float[batch, 16] x, float[16, 8] w, float[8] b) => (float[batch, 8] y) {
        [product] product = MatMul (x, w)
        [active] active = Relu (product)
        [sum] y = Add (active, b)
    }"""
    return give_weights(ir.from_onnx_text(text), "w", "b")


@pytest.fixture
def cached() -> ir.Model:
    """One causal attention over the generator interface: 4 heads on 2, growing cache."""
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        cached (
            float[batch, 4, new, 8] query, float[batch, 2, new, 8] key,
            float[batch, 2, new, 8] value, int64[batch] {LENGTHS},
            float[batch, 2, past, 8] {past_name(0, "key").replace(".", "_")},
            float[batch, 2, past, 8] {past_name(0, "value").replace(".", "_")}
        ) => (float[batch, 4, new, 8] logits) {{
            fresh = Shape <start = 2, end = 3> (key)
            valid = Add ({LENGTHS}, fresh)
            logits = Identity (query)
        }}"""
    )
    graph = model.graph
    values = {value.name: value for value in graph.inputs}
    for part in ("key", "value"):
        values[past_name(0, part).replace(".", "_")].name = past_name(0, part)
    add, stub = graph.node(1), graph.node(2)
    inputs = {
        "query": values["query"],
        "key": values["key"],
        "value": values["value"],
        "past_key": values[past_name(0, "key").replace(".", "_")],
        "past_value": values[past_name(0, "value").replace(".", "_")],
        "lengths": add.outputs[0],
    }
    spec = AttentionSpec(scale=8**-0.5, causal=True, cache="concat", lengths=True)
    node = add_flash_attention(model, spec, inputs, name="attention")
    graph.insert_after(add, node)
    stub.replace_input_with(0, node.outputs[0])
    for part, output in zip(("key", "value"), node.outputs[1:], strict=True):
        output.name = present_name(0, part)
        graph.outputs.append(output)
    return model
