"""The canonical form: opset 24, functions inlined, RoPE tables with a batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from optc.core.context import Array
from optc.core.errors import UnsupportedError
from optc.ir.canonical import OPSET, canonicalize, repair_rotary_batch

BATCH, HEADS, ROWS, DIM = 2, 3, 4, 8


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # one case below fails on purpose
    serialized = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def rotary(tables: str = "float[1, S, 4]") -> ir.Model:
    """What the opset-23 exporter writes: tables of batch 1 for a query and a key of batch B."""
    return ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 23]>
        rope (float[B, 3, S, 8] q, float[B, 3, S, 8] k, {tables} cos, {tables} sin)
          => (float[B, 3, S, 8] q_turned, float[B, 3, S, 8] k_turned) {{
          q_turned = RotaryEmbedding(q, cos, sin)
          k_turned = RotaryEmbedding(k, cos, sin)
        }}"""
    )


def rotary_inputs() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, np.pi, (1, ROWS, DIM // 2))
    q, k = rng.standard_normal((2, BATCH, HEADS, ROWS, DIM))
    arrays = {"q": q, "k": k, "cos": np.cos(angles), "sin": np.sin(angles)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (x[i], x[i + D/2]) by the angles of the tables."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def test_tables_of_batch_one_fail_at_batch_two() -> None:
    """The defect that the repair is for; where this test fails, the repair can go."""
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        session(rotary()).run(None, rotary_inputs())


def test_repaired_tables_rotate_every_row() -> None:
    model, inputs = rotary(), rotary_inputs()
    canonicalize(model)
    turned = session(model).run(None, inputs)
    for name, given in zip(("q", "k"), turned, strict=True):
        expected = rotate(inputs[name], inputs["cos"], inputs["sin"])
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)


def test_each_table_is_expanded_once() -> None:
    model = rotary()
    assert repair_rotary_batch(model) == 2
    assert [node.op_type for node in model.graph].count("Expand") == 2


def test_repaired_tables_are_not_repaired_again() -> None:
    model = rotary()
    canonicalize(model)
    assert repair_rotary_batch(model) == 0


def test_tables_that_have_the_batch_are_left_alone() -> None:
    assert repair_rotary_batch(rotary("float[B, S, 4]")) == 0


def test_tables_that_are_looked_up_by_position_are_left_alone() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 23]>
        rope (float[B, 3, S, 8] q, float[M, 4] cos, float[M, 4] sin, int64[B, S] at)
          => (float[B, 3, S, 8] y) { y = RotaryEmbedding(q, cos, sin, at) }"""
    )
    assert repair_rotary_batch(model) == 0


@pytest.mark.parametrize("opset", [17, 18, 21, 23, 24])
def test_opsets_are_converted_without_moving_the_numbers(opset: int) -> None:
    """ReduceSum, Split and Softmax are among the ops whose form changed over the years."""
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        old (float[N, 6] x) => (float[N, 3] y, float[N, 1] s) {{
          half = Constant<value_ints = [3, 3]>()
          axes = Constant<value_ints = [1]>()
          a, b = Split<axis = 1>(x, half)
          p = Softmax<axis = 1>(a)
          y = Mul(p, b)
          s = ReduceSum<keepdims = 1>(x, axes)
        }}"""
    )
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    canonicalize(model)
    y, s = session(model).run(None, {"x": x})
    weights = np.exp(x[:, :3]) / np.exp(x[:, :3]).sum(1, keepdims=True)
    np.testing.assert_allclose(y, weights * x[:, 3:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(s, x.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)
    assert model.opset_imports[""] == OPSET


def test_a_newer_opset_is_refused_with_what_to_do() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 13, opset_import: ["": 25]>
        new (float[N] x) => (float[N] y) { y = Relu(x) }"""
    )
    with pytest.raises(UnsupportedError) as caught:
        canonicalize(model)
    assert str(caught.value) == (
        "the model uses opset 25, newer than 24; export it with opset_version=24 or lower"
    )


def test_functions_of_the_exporter_are_inlined() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 18, "pkg": 1]>
        outer (float[N] x) => (float[N] y) { y = pkg.Twice(x) }
        <domain: "pkg", opset_import: ["": 18]>
        Twice (a) => (b) { b = Add(a, a) }"""
    )
    canonicalize(model)
    assert [node.op_type for node in model.graph] == ["Add"]
    assert not model.functions


def test_repeated_dead_and_empty_nodes_go() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 18]>
        messy (float[N] x) => (float[N] y) {
          same = Identity(x)
          a = Exp(same)
          b = Exp(x)
          unused = Sin(x)
          y = Mul(a, b)
        }"""
    )
    canonicalize(model)
    assert [node.op_type for node in model.graph] == ["Exp", "Mul"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_the_canonical_form_is_stable() -> None:
    model = rotary()
    canonicalize(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    canonicalize(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


@pytest.mark.parametrize("version", [3, 8])
def test_constants_that_are_listed_as_inputs_are_none_any_more(version: int) -> None:
    """Up to IR version 3 a file had to list them."""
    model = ir.from_onnx_text(
        f"""<ir_version: {version}, opset_import: ["": 13]>
        main (float[n, 2] x, float[2, 2] w = {{1, 2, 3, 4}}) => (float[n, 2] y) {{
            y = MatMul(x, w)
        }}"""
    )
    if "w" not in {value.name for value in model.graph.inputs}:
        model.graph.inputs.append(model.graph.initializers["w"])
    canonicalize(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    x = np.array([[1, 1]], np.float32)
    (y,) = session(model).run(None, {"x": x})
    np.testing.assert_allclose(y, [[4, 6]])
