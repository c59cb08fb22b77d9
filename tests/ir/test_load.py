"""Model files are hostile until shown otherwise: every refusal is one sentence about the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optc.core.errors import ModelFileError, OutputError
from optc.ir.external import check_external_data
from optc.ir.load import load_canonical, load_model
from optc.ir.save import save_model

DATA = "model.onnx.data"
Reader = Callable[[Path], object]
READERS = pytest.mark.parametrize("read", [load_model, check_external_data])


def linear() -> ir.Model:
    """y = x @ W, with W large enough to be kept outside the file."""
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        linear (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, W) }"""
    )
    weight = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) / 4096
    value = next(node for node in model.graph).inputs[1]
    assert value is not None
    value.const_value = ir.tensor(weight, name="W")
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([64, 64])
    model.graph.register_initializer(value)
    return model


def weight_of(model: ir.Model) -> ir.ExternalTensor:
    tensor = model.graph.initializers["W"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    return tensor


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(linear(), tmp_path / "sub" / "model.onnx")


def redirect(path: Path, location: str) -> None:
    """Let the weight's external data point somewhere else."""
    proto = ir.to_proto(ir.load(path))
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())


def test_saving_makes_the_folder_and_two_files(saved: Path) -> None:
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model.onnx", DATA]
    assert saved.stat().st_size < 2000


def test_what_was_saved_runs_and_reads_back(saved: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    weight = weight_of(load_model(saved)).numpy()
    (y,) = ort.InferenceSession(saved).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight, rtol=1e-5)


def test_the_same_model_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = save_model(linear(), tmp_path / "other" / "model.onnx")
    for name in ("model.onnx", DATA):
        assert (saved.parent / name).read_bytes() == (again.parent / name).read_bytes()


def test_weights_are_left_on_disk(saved: Path) -> None:
    tensor = weight_of(load_model(saved))
    assert Path(tensor.path) == saved.parent / DATA


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/model\.onnx: cannot be written: \w") as caught:
        save_model(linear(), tmp_path / "file" / "model.onnx")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone\.onnx: no such file; give the path"):
        load_model(tmp_path / "gone.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder, not a file"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"hello, I am a text file\n", b"PK\x03\x04" + bytes(100), b"\x80\x04pickle"],
    ids=["empty", "zero", "text", "zip", "pickle"],
)
def test_a_file_that_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        load_model(path)


@given(content=st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_file_cut_in_the_middle(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        load_model(saved)


@READERS
def test_external_data_that_is_missing(saved: Path, read: Reader) -> None:
    (saved.parent / DATA).unlink()
    with pytest.raises(ModelFileError, match=f"its external data file '{DATA}' is missing; copy"):
        read(saved)


@READERS
def test_external_data_that_is_truncated(saved: Path, read: Reader) -> None:
    data = saved.parent / DATA
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelFileError) as caught:
        read(saved)
    size = 64 * 64 * 4
    assert f"'W' needs byte {size}, the file ends at {size - 1}" in str(caught.value)


@READERS
@pytest.mark.parametrize(
    "location",
    [
        lambda folder: "../outside.data",
        lambda folder: str(folder.parent / "outside.data"),
        lambda folder: "link.data",
    ],
    ids=["parent", "absolute", "link"],
)
def test_external_data_outside_the_folder_is_never_opened(
    saved: Path, location: Callable[[Path], str], read: Reader
) -> None:
    outside = saved.parent.parent / "outside.data"
    outside.write_bytes((saved.parent / DATA).read_bytes())
    (saved.parent / "link.data").symlink_to(outside)
    redirect(saved, location(saved.parent))
    with pytest.raises(ModelFileError, match="'W' lies outside the model's folder"):
        read(saved)


def test_loading_canonically_converts_the_opset(tmp_path: Path) -> None:
    path = tmp_path / "old.onnx"
    old = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]>
        old (float[N] x) => (float[N] y) { y = Relu(x) }"""
    )
    ir.save(old, path)
    assert load_model(path).opset_imports[""] == 17
    assert load_canonical(path).opset_imports[""] == 24
