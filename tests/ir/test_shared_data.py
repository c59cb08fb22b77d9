"""What two models have in common is stored once, and both are what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Array
from optc.core.errors import OutputError
from optc.core.pread import read_bytes
from optc.ir import shared_data
from optc.ir.external import check_external_data
from optc.ir.save import save_model
from optc.ir.shared_data import share_data

LARGE = (600, 600)  # more than a megabyte: it begins at a page
SMALL = (33, 17)


def write(path: Path, weights: dict[str, Array]) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["": 24]> m (float[N] x) => (float[N] y) { y = Neg(x) }'
    )
    for name, array in weights.items():
        model.graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(array)))
    save_model(model, path)


def read(path: Path) -> dict[str, Array]:
    check_external_data(path)
    values = ir.load(path).graph.initializers.values()
    return {str(v.name): v.const_value.numpy().copy() for v in values if v.const_value}


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, Array]:
    shapes = {"a": LARGE, "b": SMALL, "c": SMALL, "d": LARGE, "e": LARGE}
    return {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


def test_equal_weights_are_stored_once_whatever_they_are_called(
    arrays: dict[str, Array], tmp_path: Path
) -> None:
    one = {"a": arrays["a"], "b": arrays["b"], "c": arrays["c"]}
    other = {"t": arrays["d"], "u": arrays["b"], "z": arrays["a"], "w": arrays["e"]}
    write(tmp_path / "one.onnx", one)
    write(tmp_path / "two.onnx", other)
    kept = (tmp_path / "one.onnx.data").read_bytes()
    saved = share_data(tmp_path / "one.onnx", tmp_path / "two.onnx")
    assert saved == arrays["a"].nbytes + arrays["b"].nbytes
    for name, wanted in (("one", one), ("two", other)):
        found = read(tmp_path / f"{name}.onnx")
        assert set(found) == set(wanted)
        for key in wanted:
            np.testing.assert_array_equal(found[key], wanted[key])
    rest = arrays["d"].nbytes + arrays["e"].nbytes
    assert rest <= (tmp_path / "two.onnx.data").stat().st_size < rest + 2 * 4096
    assert (tmp_path / "one.onnx.data").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.onnx",
        "one.onnx.data",
        "two.onnx",
        "two.onnx.data",
    ]


def test_large_weights_still_begin_at_a_page(arrays: dict[str, Array], tmp_path: Path) -> None:
    write(tmp_path / "one.onnx", {"b": arrays["b"]})
    write(tmp_path / "two.onnx", {"b": arrays["b"], "c": arrays["c"], "d": arrays["d"]})
    share_data(tmp_path / "one.onnx", tmp_path / "two.onnx")
    values = ir.load(tmp_path / "two.onnx").graph.initializers
    tensor = values["d"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    assert tensor.offset % 4096 == 0


def test_nothing_in_common_changes_nothing(arrays: dict[str, Array], tmp_path: Path) -> None:
    write(tmp_path / "one.onnx", {"b": arrays["b"]})
    write(tmp_path / "two.onnx", {"c": arrays["c"]})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert share_data(tmp_path / "one.onnx", tmp_path / "two.onnx") == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_would_be_empty_is_not_there(arrays: dict[str, Array], tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.onnx", {"a": arrays["a"]})
    share_data(tmp_path / "one.onnx", tmp_path / "two.onnx")
    assert not (tmp_path / "two.onnx.data").exists()
    np.testing.assert_array_equal(read(tmp_path / "two.onnx")["a"], arrays["a"])


def test_what_the_disk_does_not_keep_is_noticed(
    arrays: dict[str, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, more in (("one", "c"), ("two", "d")):
        write(tmp_path / f"{name}.onnx", {"a": arrays["a"], more: arrays[more]})

    def lose(path: str, offset: int, count: int) -> Array:
        found = read_bytes(path, offset, count)
        return found ^ 1 if path.endswith(".new") else found

    monkeypatch.setattr("optc.ir.shared_data.read_bytes", lose)
    with pytest.raises(OutputError, match="what it holds is not what was written"):
        share_data(tmp_path / "one.onnx", tmp_path / "two.onnx")
    np.testing.assert_array_equal(read(tmp_path / "two.onnx")["d"], arrays["d"])


def test_weights_that_point_elsewhere_are_noticed(
    arrays: dict[str, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one.onnx", {"b": arrays["b"], "c": arrays["c"]})
    write(tmp_path / "two.onnx", {"c": arrays["c"], "b": arrays["b"]})
    first = shared_data._Place(tmp_path / "one.onnx.data", 0, arrays["b"].nbytes)
    point = shared_data._point
    monkeypatch.setattr(shared_data, "_point", lambda tensor, place: point(tensor, first))
    with pytest.raises(OutputError, match=r"two\.onnx: what it holds is not what was written"):
        share_data(tmp_path / "one.onnx", tmp_path / "two.onnx")


def test_weights_of_one_size_in_a_branch_are_each_found_by_their_bytes(
    arrays: dict[str, Array], tmp_path: Path
) -> None:
    write(tmp_path / "one.onnx", {"b": arrays["b"], "c": arrays["c"]})
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]> m (bool c, float[N] x) => (float[N] y) {
             y = If(c) <then_branch = t () => (float[N] p) { p = Neg(x) },
                        else_branch = e () => (float[N] q) { q = Abs(x) }> }"""
    )
    branches = [
        model.graph.node(0).attributes[f"{way}_branch"].as_graph() for way in ("then", "else")
    ]
    pairs = (("x", "c"), ("y", "b"), ("z", "d"))
    for graph, (name, key) in zip([*branches, model.graph], pairs, strict=True):
        tensor = ir.tensor(arrays[key], name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    save_model(model, tmp_path / "two.onnx")
    saved = share_data(tmp_path / "one.onnx", tmp_path / "two.onnx")
    assert saved == arrays["b"].nbytes + arrays["c"].nbytes
    check_external_data(tmp_path / "two.onnx")
    found = {
        str(value.name): value.const_value
        for graph in ir.load(tmp_path / "two.onnx").graphs()
        for value in graph.initializers.values()
    }
    for name, key in pairs:
        np.testing.assert_array_equal(found[name].numpy(), arrays[key])
    where = {name: tensor.location for name, tensor in found.items()}
    assert where == {"x": "one.onnx.data", "y": "one.onnx.data", "z": "two.onnx.data"}
