"""Old opsets are converted, not renumbered: results are those of the original file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from optc.core.errors import UnsupportedError
from optc.ir.canonical import OPSET, canonicalize
from optc.ir.load import load_canonical
from optc.ir.opsets import convert_opset

X = "float[B,S,8] x"
OLD = {
    "reduce-mean": (17, "(float[B,S,1] y)", "y = ReduceMean<axes = [-1], keepdims = 1>(x)"),
    "split": (17, "(float[B,S,4] y, float[B,S,4] z)", "y, z = Split<axis = -1>(x)"),
    "softmax": (12, "(float[B,S,8] y)", "y = Softmax<axis = 1>(x)"),
    "log-softmax": (11, "(float[B,S,8] y)", "y = LogSoftmax(x)"),
    "unsqueeze": (12, "(float[B,1,S,8] y)", "y = Unsqueeze<axes = [1]>(x)"),
    "reduce-sum": (12, "(float[B,S] y)", "y = ReduceSum<axes = [2], keepdims = 0>(x)"),
    "branch": (
        12,
        "(float[B,S,8] y)",
        """size = Size(x)  limit = Constant<value = int64 {9}>()  c = Greater(size, limit)
        y = If(c) <
          then_branch = g1 () => (float[B,S,8] a) { a = Softmax<axis = 1>(x) },
          else_branch = g2 () => (float[B,S,8] b) { b = Relu(x) }
        >""",
    ),
}


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize(("opset", "outputs", "nodes"), OLD.values(), ids=OLD)
def test_an_old_form_gives_what_the_original_gives(opset: int, outputs: str, nodes: str) -> None:
    original = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["": {opset}]> old ({X}) => {outputs} {{ {nodes} }}'
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    model = ir.from_proto(original)
    canonicalize(model)
    assert model.opset_imports[""] == OPSET
    for expected, given in zip(run(original, x), run(ir.to_proto(model), x), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


def test_weights_stay_on_disk(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    path = tmp_path / "old.onnx"
    proto = onnx.parser.parse_model(
        """<ir_version: 7, opset_import: ["": 12]>
        old (float[N,64] x) => (float[N,64] y) { h = MatMul(x, w)  y = Softmax(h) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    ir.save(ir.from_proto(proto), path, external_data="old.data")
    model = load_canonical(path)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    (expected,), (given,) = run(proto, x), run(ir.to_proto(model), x)
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_converted_is_one_sentence() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 3, opset_import: ["": 6]>
        old (float[N] x) => (float[N] y) {
          y = Upsample<height_scale = 2.0, width_scale = 2.0>(x)
        }"""
    )
    with pytest.raises(UnsupportedError, match="opset 6 cannot be converted to 24: ") as caught:
        convert_opset(model, 24)
    assert len(str(caught.value).splitlines()) == 1
