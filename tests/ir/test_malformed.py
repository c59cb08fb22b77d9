"""A model that is not well-formed is refused when it is read, in one sentence, without a log."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optc.core.errors import ModelFileError
from optc.ir.canonical import canonicalize
from optc.ir.load import load_canonical, load_model

node = helper.make_node


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    initializers: tuple[TensorProto, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> Path:
    """A model of four floats x -> y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=list(initializers))
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("local", 1)]
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=11, functions=list(functions)
    )
    path.write_bytes(model.SerializeToString())
    return path


def external(location: str, dims: tuple[int, ...] = (4,)) -> TensorProto:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def recursive() -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("local", 1)]
    call = node("F", ["a"], ["b"], domain="local")
    return helper.make_function("local", "F", ["a"], ["b"], [call], imports)


BAD = {
    "cycle": [
        node("Add", ["x", "b"], ["a"]),
        node("Add", ["x", "a"], ["b"]),
        node("Relu", ["a"], ["y"]),
    ],
    "input from nowhere": [node("Add", ["x", "nowhere"], ["y"])],
    "output from nowhere": [node("Relu", ["x"], ["z"])],
    "attribute of a wrong type": [node("Softmax", ["x"], ["y"], axis="abc")],
    "Range of one": [node("Range", ["x"], ["y"])],
    "RotaryEmbedding of one": [node("RotaryEmbedding", ["x"], ["y"])],
}


@pytest.mark.parametrize("nodes", BAD.values(), ids=BAD)
def test_a_malformed_graph(
    nodes: list[onnx.NodeProto], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "m.onnx", nodes)
    with caplog.at_level(logging.WARNING), pytest.raises(ModelFileError) as caught:
        load_canonical(path)
    assert str(caught.value).startswith(f"{path}: the model is not well-formed: ")
    assert len(str(caught.value).splitlines()) == 1
    assert caplog.records == []


def test_a_function_that_calls_itself(tmp_path: Path) -> None:
    call = node("F", ["x"], ["y"], domain="local")
    path = write(tmp_path / "m.onnx", [call], functions=(recursive(),))
    with pytest.raises(ModelFileError, match="Cycle detected in model-local function"):
        load_canonical(path)
    with pytest.raises(ModelFileError, match="call each other in a circle"):
        canonicalize(load_model(path))


def test_nodes_may_share_a_name(tmp_path: Path) -> None:
    """ONNX allows it; the canonical form does not."""
    nodes = [node("Relu", ["x"], ["a"], name="n"), node("Exp", ["a"], ["y"], name="n")]
    model = load_canonical(write(tmp_path / "m.onnx", nodes))
    assert len({n.name for n in model.graph}) == 2


def test_data_that_is_shorter_than_its_shape(tmp_path: Path) -> None:
    short = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(8))
    path = write(tmp_path / "m.onnx", [node("Add", ["x", "c"], ["y"])], (short,))
    with pytest.raises(ModelFileError, match="data of the weight 'c' does not fit its shape"):
        load_model(path)


def constant_in(where: str, tensor: TensorProto) -> dict[str, list]:
    """The nodes and functions of a model with a constant `c` somewhere."""
    constant = node("Constant", [], ["c"], value=tensor)
    add = node("Add", ["x", "c"], ["y"])
    if where == "graph":
        return {"nodes": [constant, add]}
    if where == "function":
        imports = [helper.make_opsetid("", 24)]
        body = helper.make_function("local", "F", ["x"], ["y"], [constant, add], imports)
        return {"nodes": [node("F", ["x"], ["y"], domain="local")], "functions": [body]}
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])
    branch = helper.make_graph([constant, node("Add", ["x", "c"], ["b"])], "branch", [], [out])
    true = node("Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    return {"nodes": [true, node("If", ["t"], ["y"], then_branch=branch, else_branch=branch)]}


@pytest.mark.parametrize("where", ["graph", "subgraph", "function"])
def test_constants_are_checked_like_weights(where: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "short.bin").write_bytes(bytes(8))
    for location, problem in {
        "../secret.bin": "'c' lies outside the model's folder",
        "gone.bin": "its external data file 'gone.bin' is missing",
        "short.bin": "its external data file 'short.bin' is truncated",
    }.items():
        path = write(folder / "m.onnx", **constant_in(where, external(location)))
        with pytest.raises(ModelFileError, match=problem):
            load_model(path)


@pytest.mark.parametrize("where", ["graph", "subgraph", "function"])
def test_constants_with_external_data_are_read(where: str, tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    model = load_canonical(write(tmp_path / "m.onnx", **constant_in(where, external("c.bin"))))
    found = [
        n.attributes["value"].as_tensor().numpy()
        for n in model.graph.all_nodes()
        if n.op_type == "Constant" and n.outputs[0].name != "t"
    ]
    assert found
    for values in found:
        np.testing.assert_array_equal(values, [0, 1, 2, 3])


def test_negative_dimensions(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(bytes(16))
    path = write(tmp_path / "m.onnx", [node("Add", ["x", "c"], ["y"])], (external("c.bin", (-4,)),))
    with pytest.raises(ModelFileError, match="the weight 'c' has a negative dimension"):
        load_model(path)
