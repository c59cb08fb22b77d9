from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from optc.core.errors import ModelFileError
from optc.core.registry import Registry
from optc.core.session import Session
from optc.ir.save import save_model
from optc.targets import PLANNED, TABLE
from optc.targets.base import Target
from optc.targets.ort import Ort

X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)


def test_it_is_in_the_table() -> None:
    registry = Registry("target", "targets", Target, TABLE, planned=PLANNED, points=[])
    assert registry.load("ort") is Ort
    assert registry.load("ort").name == "ort"


def test_it_is_available_wherever_optc_is() -> None:
    assert Ort().unavailable() is None


def test_it_refuses_operators_that_nobody_defines(cached: ir.Model) -> None:
    assert Ort().refuses(cached) == []
    for name in ("one", "two"):
        cached.graph.append(ir.node("Foo", [cached.graph.inputs[0]], domain="acme", name=name))
    assert Ort().refuses(cached) == ["onnxruntime has no operator acme::Foo (2 nodes, first 'one')"]


def test_it_looks_into_subgraphs_and_functions() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24, "acme": 1, "own": 1]>
        g (bool c, float[n] x) => (float[n] y) {
            z = If (c) <then_branch = t () => (float[n] a) { a = acme.Inner(x) },
                        else_branch = e () => (float[n] b) { b = Neg(x) }>
            y = own.Twice(z)
        }
        <domain: "own", opset_import: ["": 24, "acme": 1]>
        Twice (v) => (w) { w = acme.Body(v) }"""
    )
    reasons = Ort().refuses(model)
    assert [reason.split()[4] for reason in reasons] == ["acme::Inner", "acme::Body"]


def test_lowering_gives_a_copy_without_what_is_unused(cached: ir.Model) -> None:
    spare = next(iter(cached.functions.values())).clone()
    spare.overload = "spare"
    cached.functions[spare.identifier()] = spare
    dead = ir.Value(name="dead", const_value=ir.tensor([1.0], name="dead"))
    cached.graph.register_initializer(dead)
    lowered = Ort().lower(cached)
    assert not lowered.functions
    assert "dead" not in lowered.graph.initializers
    assert len(cached.functions) == 2
    assert "dead" in cached.graph.initializers


def test_lowering_hands_a_copy_to_the_quantised_kernels(
    linear: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ir.Model] = []
    monkeypatch.setattr("optc.targets.ort_lower.lower_quant", seen.append)
    lowered = Ort().lower(linear)
    assert seen == [lowered]
    assert lowered is not linear


def test_building_writes_an_engine_and_states_the_facts(linear: ir.Model, tmp_path: Path) -> None:
    facts = Ort().build(Ort().lower(linear), tmp_path)
    assert facts == {
        "files": ["engine.onnx", "engine.onnx.data"],
        "roles": {"prefill": "engine.onnx", "decode": "engine.onnx"},
        "runtime": "onnxruntime",
        "runtime_version": onnxruntime.__version__,
        "hardware": "any CPU",
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 16]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 8]}],
        "details": {},
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == facts["files"]


def test_the_engine_computes_what_the_graph_computes(linear: ir.Model, tmp_path: Path) -> None:
    w, b = (linear.graph.initializers[n].const_value.numpy() for n in ("w", "b"))
    Ort().build(Ort().lower(linear), tmp_path)
    session = Ort().open(tmp_path)
    assert isinstance(session, Session)
    np.testing.assert_allclose(session.run({"x": X})["y"], np.maximum(X @ w, 0) + b, rtol=1e-5)


def test_a_truncated_engine_is_not_opened(linear: ir.Model, tmp_path: Path) -> None:
    Ort().build(Ort().lower(linear), tmp_path)
    data = tmp_path / "engine.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"'engine.onnx.data' is truncated"):
        Ort().open(tmp_path)


def test_an_engine_that_reads_outside_its_folder_is_not_opened(
    linear: ir.Model, tmp_path: Path
) -> None:
    folder = tmp_path / "engine"
    Ort().build(Ort().lower(linear), folder)
    (folder / "engine.onnx.data").rename(tmp_path / "engine.onnx.data")
    model = ir.load(folder / "engine.onnx")
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            tensor = value.const_value
            value.const_value = ir.ExternalTensor(
                "../engine.onnx.data",
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=folder,
            )
    ir.save(model, folder / "engine.onnx")
    with pytest.raises(ModelFileError, match="outside the model's folder"):
        Ort().open(folder)


def test_builds_are_byte_identical_across_processes(linear: ir.Model, tmp_path: Path) -> None:
    source = save_model(linear, tmp_path / "source" / "model.onnx")
    script = (
        "import sys; from pathlib import Path\n"
        "from optc.ir.load import load_canonical; from optc.targets.ort import Ort\n"
        "Ort().build(Ort().lower(load_canonical(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    built = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", script, source, folder],
            check=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        built.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert set(built[0]) == {"engine.onnx", "engine.onnx.data"}
    assert built[0] == built[1]
