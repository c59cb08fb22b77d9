"""Sums that are normalised become one kernel, where that is the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Array
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort

FUSED = "SkipSimplifiedLayerNormalization"
BODY = """
    total = Add (x, y)
    normal = RMSNormalization <axis = -1, epsilon = 0.001> (total, scale)
    out = Neg (normal)
"""


def norm(
    body: str = BODY,
    y: str = "batch, tokens, 16",
    outputs: str = "float[batch, tokens, 16] out",
    scale: int = 16,
) -> ir.Model:
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        norm (float[batch, tokens, 16] x, float[{y}] y) => ({outputs})
        <float[batch, tokens, 16] total, float[batch, tokens, 16] normal> {{ {body} }}"""
    )
    array = np.linspace(0.5, 2, scale, dtype=np.float32)
    weight = ir.Value(
        name="scale",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([scale]),
        const_value=ir.tensor(array, name="scale"),
    )
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == "scale":
                node.replace_input_with(index, weight)
    model.graph.register_initializer(weight)
    return model


def lowered_ops(model: ir.Model, size: float = 1.0) -> Counter[str]:
    """Operators after lowering, which computes what the graph did."""
    rng = np.random.default_rng(0)
    sizes = {"batch": 2, "tokens": 3}
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape or ()]
        feeds[str(value.name)] = rng.standard_normal(shape, np.float32) * np.float32(size)
    lowered = Ort().lower(model)
    with open_model(model) as before, open_model(lowered) as after:
        expected, given = before.run(feeds), after.run(feeds)
    assert list(given) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(given[name], array, rtol=0, atol=2e-6)
    return Counter(node.op_type for node in lowered.graph)


def test_a_sum_and_its_norm_become_one_node() -> None:
    assert lowered_ops(norm()) == {FUSED: 1, "Neg": 1}


def test_the_sum_goes_on_to_whoever_else_uses_it() -> None:
    outputs = "float[batch, tokens, 16] out, float[batch, tokens, 16] total"
    assert lowered_ops(norm(outputs=outputs)) == {FUSED: 1, "Neg": 1}
    later = "float[batch, tokens, 16] out, float[batch, tokens, 16] z"
    found = lowered_ops(norm(body=BODY + "z = Abs (total)", outputs=later))
    assert found == {FUSED: 1, "Neg": 1, "Abs": 1}


def test_the_default_epsilon_is_that_of_the_standard() -> None:
    """Values so small that epsilon decides what comes out."""
    assert lowered_ops(norm(body=BODY.replace(", epsilon = 0.001", "")), 1e-3)[FUSED] == 1


@pytest.mark.parametrize(
    "model",
    [
        norm(y="16"),
        norm(y="1, tokens, 16"),
        norm(body=BODY.replace("axis = -1", "axis = 1"), scale=1),
        norm(body=BODY.replace("Add", "Mul")),
        norm(body=BODY.replace("total, scale", "x, scale")),
    ],
    ids=["bias", "one row for all", "over two axes", "a product", "no sum"],
)
def test_what_is_not_a_sum_of_two_such_values_stays(model: ir.Model) -> None:
    found = lowered_ops(model)
    assert (found["RMSNormalization"], found[FUSED]) == (1, 0)
