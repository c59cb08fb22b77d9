"""External data is checked without the compiler, wherever in a file it is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from optc.core.errors import ModelFileError
from optc.ir.external import check_external_data

DATA = "w.data"


def tensor(dtype: int = TensorProto.FLOAT, dims: tuple[int, ...] = (4,)) -> TensorProto:
    made = TensorProto(name="w", data_type=dtype, dims=dims)
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value=DATA)
    return made


def graph(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "g", [], [out], weights)


def constant() -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=tensor())


def branch() -> onnx.NodeProto:
    inner = graph(weights=(tensor(),))
    return helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)


def function() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 24)]
    made = helper.make_function("local", "f", [], ["y"], [constant()], imports)
    return helper.make_model(graph(), functions=[made])


def sparse() -> onnx.ModelProto:
    indices = helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3])
    made = graph()
    made.sparse_initializer.append(helper.make_sparse_tensor(tensor(), indices, [9]))
    return helper.make_model(made)


PLACES = {
    "sparse": sparse,
    "initializer": lambda: helper.make_model(graph(weights=(tensor(),))),
    "attribute": lambda: helper.make_model(graph(constant())),
    "branch": lambda: helper.make_model(graph(branch())),
    "function": function,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_it_is_found_everywhere(place: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(place(), path)
    (tmp_path / DATA).write_bytes(bytes(16))
    check_external_data(path)
    (tmp_path / DATA).write_bytes(bytes(15))
    with pytest.raises(ModelFileError, match="'w' needs byte 16, the file ends at 15"):
        check_external_data(path)


@pytest.mark.parametrize(
    ("dtype", "count"),
    [(TensorProto.INT4, 2), (TensorProto.UINT8, 3), (TensorProto.BFLOAT16, 6)],
)
def test_bytes_follow_the_element_type(dtype: int, count: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph(weights=(tensor(dtype, (3,)),))), path)
    (tmp_path / DATA).write_bytes(bytes(count))
    check_external_data(path)
    (tmp_path / DATA).write_bytes(bytes(count - 1))
    with pytest.raises(ModelFileError, match="truncated"):
        check_external_data(path)


@pytest.mark.parametrize("dtype", [0, 999])
def test_a_type_that_does_not_exist_is_named(dtype: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph(weights=(tensor(dtype),))), path)
    with pytest.raises(ModelFileError, match="the weight 'w' has no usable type, shape or place"):
        check_external_data(path)


def test_running_a_bundle_does_not_import_the_compiler() -> None:
    """40 MB of resident memory, half a second."""
    code = (
        "import sys, optc.cli.run, optc.api.run, optc.targets.ort\n"
        "print(sorted({'onnx_ir', 'onnxscript', 'sympy', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
