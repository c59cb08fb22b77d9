from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.errors import ModelFileError, OptcError, SampleError, UnsupportedError
from optc.core.session import Port, Session
from optc.ir.save import save_model
from optc.targets.ort_session import OrtSession

X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)


@pytest.fixture
def session(linear: ir.Model, tmp_path: Path) -> OrtSession:
    return OrtSession(save_model(linear, tmp_path / "linear.onnx"))


def open_text(text: str, tmp_path: Path) -> OrtSession:
    head = '<ir_version: 11, opset_import: ["": 24, "acme": 1]>\n'
    return OrtSession(save_model(ir.from_onnx_text(head + text), tmp_path / "graph.onnx"))


def test_it_is_a_session_with_typed_ports(session: OrtSession) -> None:
    assert isinstance(session, Session)
    assert session.inputs == (Port("x", "float32", ("batch", 16)),)
    assert session.outputs == (Port("y", "float32", ("batch", 8)),)


def test_it_computes_what_numpy_computes(session: OrtSession, linear: ir.Model) -> None:
    w, b = (linear.graph.initializers[n].const_value.numpy() for n in ("w", "b"))
    np.testing.assert_allclose(session.run({"x": X})["y"], np.maximum(X @ w, 0) + b, rtol=1e-5)


@pytest.mark.parametrize(
    ("onnx_name", "numpy_name"),
    [
        ("float", "float32"),
        ("double", "float64"),
        ("float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("int64", "int64"),
        ("uint8", "uint8"),
        ("bool", "bool"),
        ("string", "object"),
    ],
)
def test_element_types_have_the_names_that_the_graph_has(
    onnx_name: str, numpy_name: str, tmp_path: Path
) -> None:
    session = open_text(
        f"g ({onnx_name}[n] x) => ({onnx_name}[n] y) {{ y = Identity(x) }}", tmp_path
    )
    assert session.inputs[0].dtype == session.outputs[0].dtype == numpy_name


def test_an_axis_without_a_name_is_a_question_mark(tmp_path: Path) -> None:
    text = "g (float[n, ?, 2] x) => (float[n, ?, 2] y) { y = Neg(x) }"
    assert open_text(text, tmp_path).inputs[0].shape == ("n", "?", 2)


def test_only_the_outputs_asked_for_come_back_in_that_order(tmp_path: Path) -> None:
    outputs = "float[n] a, float[n] b, float[n] c"
    text = f"g (float[n] x) => ({outputs}) {{ a = Neg(x) b = Abs(x) c = Exp(x) }}"
    session = open_text(text, tmp_path)
    assert list(session.run({"x": X[0]}, ("c", "a"))) == ["c", "a"]
    assert list(session.run({"x": X[0]})) == ["a", "b", "c"]


def test_text_goes_in_and_out(tmp_path: Path) -> None:
    session = open_text("g (string[n] x) => (string[n] y) { y = Identity(x) }", tmp_path)
    assert list(session.run({"x": np.array(["to", "be"])})["y"]) == ["to", "be"]


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({}, "the input 'x' is missing"),
        ({"x": X, "xx": X}, "there is no input 'xx'; did you mean 'x'?"),
        ({"x": X.astype(np.float64)}, "the input 'x' is float64, the graph takes float32"),
        ({"x": X[0]}, "the input 'x' has shape [16], the graph takes [batch, 16]"),
        ({"x": X[:, :4]}, "the input 'x' has shape [3, 4], the graph takes [batch, 16]"),
    ],
)
def test_a_wrong_sample_is_named_before_the_runtime_sees_it(
    session: OrtSession, feeds: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(SampleError) as caught:
        session.run(feeds)
    assert str(caught.value) == sentence


def test_an_unknown_output_is_named(session: OrtSession) -> None:
    with pytest.raises(SampleError, match="there is no output 'z'"):
        session.run({"x": X}, ("z",))


def test_a_failure_inside_names_the_node(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "g (float[n, a] x, float[b, m] w) => (float[n, m] y) { [broken] y = MatMul(x, w) }"
    session = open_text(text, tmp_path)
    with pytest.raises(UnsupportedError) as caught:
        session.run({"x": X, "w": X})
    assert caught.value.where == "graph.onnx, node 'broken'"
    assert "MatMul dimension mismatch" in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[odd] y = acme.Foo(x)", "acme:Foo(-1) is not a registered function/op"),
        ("[odd] y = Foo(x)", "No Op registered for Foo"),
    ],
)
def test_a_graph_that_the_runtime_refuses_says_why_in_one_line(
    body: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        open_text(f"g (float[n] x) => (float[n] y) {{ {body} }}", tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_bytes_that_are_not_onnx(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        OrtSession(tmp_path / "none.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"hello" * 100)
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        OrtSession(tmp_path / "noise.onnx")


def test_a_closed_session_cannot_run(session: OrtSession) -> None:
    with session:
        pass
    with pytest.raises(OptcError, match="the session is closed"):
        session.run({"x": X})


def test_idle_threads_spin_for_a_moment_only_and_we_set_their_number(
    linear: ir.Model, tmp_path: Path
) -> None:
    session = OrtSession(save_model(linear, tmp_path / "linear.onnx"), threads=1)
    options = session._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "50"
    assert options.intra_op_num_threads == 1
