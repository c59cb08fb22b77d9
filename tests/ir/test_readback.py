"""What was written is read back, and anything else than what was meant is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import optc.ir.readback as readback
from optc.core.context import Array
from optc.core.errors import OptcError, OutputError
from optc.ir.load import load_model
from optc.ir.readback import save_checked
from optc.ir.streamed import StreamedTensor

BIG = 1 << 20  # bytes from which on a weight begins at a page


def model() -> ir.Model:
    """Weights of every kind: in memory, streamed, of 4 bits, in a branch, too small for a file."""
    made = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        g (bool c, float[2] x) => (float[2] y) {
          y = If(c) <then_branch = t () => (float[2] a) { a = Neg(x) },
                     else_branch = e () => (float[2] b) { b = Abs(x) }>
        }"""
    )
    rng = np.random.default_rng(0)
    memory = rng.standard_normal((300, 1000)).astype(np.float32)
    table = rng.standard_normal((400, 3)).astype(np.float16)
    nibbles = rng.integers(0, 16, (33, 31)).astype(ml_dtypes.uint4)

    def part(rows: slice, columns: slice) -> Array:
        return table[rows, columns]

    add(made.graph, "memory", ir.Tensor(memory))
    add(made.graph, "streamed", StreamedTensor(part, ir.DataType.FLOAT16, table.shape))
    add(made.graph, "nibbles", ir.Tensor(nibbles, dtype=ir.DataType.UINT4))
    add(made.graph, "small", ir.tensor([1.0, 2.0]))
    add(made.graph, "words", ir.tensor(["a", "b"]))
    branch = made.graph.node(0).attributes["then_branch"].as_graph()
    add(branch, "inner", ir.Tensor(memory[:20]))
    return made


def add(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> None:
    tensor.name = name
    graph.register_initializer(ir.Value(name=name, const_value=tensor))


def after_writing(change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen to the files between writing and reading."""
    write = readback.save_model

    def spoilt(model: ir.Model, path: Path) -> Path:
        write(model, path)
        change(path)
        return path

    monkeypatch.setattr(readback, "save_model", spoilt)


def edited(edit: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        proto = onnx.load(path, load_external_data=False)
        edit(proto)
        onnx.save(proto, path)

    return change


def place(proto: onnx.ModelProto, name: str) -> dict[str, onnx.StringStringEntryProto]:
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    return {entry.key: entry for entry in tensor.external_data}


def test_what_is_written_as_meant_passes_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    wanted = model()
    tensors = [value.const_value for value in wanted.graph.initializers.values()]
    path = save_checked(wanted, tmp_path / "model.onnx")
    assert [value.const_value for value in wanted.graph.initializers.values()] == tensors
    got = load_model(path).graph.initializers
    for name, value in wanted.graph.initializers.items():
        assert value.const_value is not None
        assert got[name].const_value is not None
        np.testing.assert_array_equal(got[name].const_value.numpy(), value.const_value.numpy())


@pytest.mark.parametrize("name", ["memory", "streamed", "nibbles"])
def test_one_turned_bit_is_found_and_the_weight_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turn(path: Path) -> None:
        entries = place(onnx.load(path, load_external_data=False), name)
        at = int(entries["offset"].value) + int(entries["length"].value) - 1
        data = bytearray(path.with_name("model.onnx.data").read_bytes())
        data[at] ^= 16
        path.with_name("model.onnx.data").write_bytes(data)

    after_writing(turn, monkeypatch)
    with pytest.raises(OutputError, match=f"'{name}' is not what was written: its checksum"):
        save_checked(model(), tmp_path / "model.onnx")


def test_a_file_cut_short_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(path: Path) -> None:
        data = path.with_name("model.onnx.data")
        data.write_bytes(data.read_bytes()[:-100])

    after_writing(cut, monkeypatch)
    with pytest.raises(OptcError, match="it ends at byte"):
        save_checked(model(), tmp_path / "model.onnx")


def _set(name: str, key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def edit(proto: onnx.ModelProto) -> None:
        place(proto, name)[key].value = value

    return edit


def _retype(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].data_type = onnx.TensorProto.BFLOAT16


def _reshape(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].dims[:] = [3, 400]


def _drop(proto: onnx.ModelProto) -> None:
    del proto.graph.initializer[1]


def _rename(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[3].name = "other"


def _lower_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 23


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("memory", "location", "../elsewhere"), "'memory' lies in '../elsewhere', not beside"),
        (_set("memory", "offset", "4"), "'memory' begins at byte 4, inside a page"),
        (_set("streamed", "offset", "0"), "'streamed' is not what was written"),
        (_retype, "'streamed' is Meant.*not Meant"),
        (_reshape, "'streamed' is Meant.*not Meant"),
        (_drop, "'streamed' was not written"),
        (_rename, "there is a weight 'other' that nobody wrote"),
        (_lower_opset, "it says .* for IR version and opsets"),
    ],
)
def test_any_other_difference_is_found_and_named(
    edit: Callable[[onnx.ModelProto], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_writing(edited(edit), monkeypatch)
    with pytest.raises(OptcError, match=message):
        save_checked(model(), tmp_path / "model.onnx")


def test_weights_that_overlap_are_found_though_their_bytes_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = model()
    add(twice.graph, "again", ir.Tensor(np.ones((40, 40), np.float32)))
    add(twice.graph, "once", ir.Tensor(np.ones((40, 40), np.float32)))

    def share(proto: onnx.ModelProto) -> None:
        place(proto, "once")["offset"].value = place(proto, "again")["offset"].value

    after_writing(edited(share), monkeypatch)
    with pytest.raises(OptcError, match="'again' and 'once' overlap"):
        save_checked(twice, tmp_path / "model.onnx")


def test_a_tensor_that_writes_less_than_it_has_is_found(tmp_path: Path) -> None:
    def part(rows: slice, columns: slice) -> Array:
        return np.zeros((4, 100), np.float32)[rows, columns]

    short = model()
    add(short.graph, "short", StreamedTensor(part, ir.DataType.FLOAT, (8, 100)))
    with pytest.raises(OptcError, match="'short' has 3200 bytes and wrote 1600"):
        save_checked(short, tmp_path / "model.onnx")


def test_a_model_is_not_written_over_its_own_weights(tmp_path: Path) -> None:
    path = save_checked(model(), tmp_path / "model.onnx")
    with pytest.raises(OutputError, match="the model's own weights would be overwritten"):
        save_checked(load_model(path), path)


def test_large_weights_begin_at_a_page(tmp_path: Path) -> None:
    path = save_checked(model(), tmp_path / "model.onnx")
    entries = place(onnx.load(path, load_external_data=False), "memory")
    assert int(entries["length"].value) > BIG
    assert int(entries["offset"].value) % 4096 == 0
