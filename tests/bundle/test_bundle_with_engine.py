from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optc.bundle.manifest import Engine, Manifest
from optc.bundle.read import read_bundle
from optc.bundle.write import write_bundle
from optc.core.errors import BundleError
from optc.targets.ort import Ort


@pytest.fixture
def model() -> ir.Model:
    text = """<ir_version: 11, opset_import: ["": 24]>
    g (float[batch, 16] x, float[16, 8] w) => (float[batch, 8] y) { y = MatMul (x, w) }"""
    found = ir.from_onnx_text(text)
    w = found.graph.inputs.pop()
    w.const_value = ir.tensor(np.arange(128, dtype=np.float32).reshape(16, 8), name="w")
    found.graph.register_initializer(w)
    return found


def build(model: ir.Model, out: Path, manifest: Manifest) -> Path:
    def fill(folder: Path) -> Manifest:
        facts = Ort().build(Ort().lower(model), folder)
        return dataclasses.replace(manifest, engine=Engine.from_facts(facts))

    return write_bundle(out, fill)


def test_what_a_target_built_runs_from_its_bundle(
    model: ir.Model, manifest: Manifest, tmp_path: Path
) -> None:
    bundle = read_bundle(build(model, tmp_path / "model.optc", manifest))
    session = Ort().open(bundle.folder)
    assert session.inputs == bundle.manifest.engine.inputs
    x = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)
    w = np.arange(128, dtype=np.float32).reshape(16, 8)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ w, rtol=1e-5)


def test_two_builds_are_byte_identical(model: ir.Model, manifest: Manifest, tmp_path: Path) -> None:
    first = build(model, tmp_path / "first.optc", manifest)
    second = build(model, tmp_path / "other" / "second.optc", manifest)
    names = sorted(path.name for path in first.iterdir())
    assert names == ["engine.onnx", "engine.onnx.data", "manifest.json"]
    assert [(first / name).read_bytes() for name in names] == [
        (second / name).read_bytes() for name in names
    ]


def test_one_changed_weight_is_found_before_the_engine_opens(
    model: ir.Model, manifest: Manifest, tmp_path: Path
) -> None:
    path = build(model, tmp_path / "model.optc", manifest)
    data = bytearray((path / "engine.onnx.data").read_bytes())
    data[100] ^= 0x80
    (path / "engine.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"'engine.onnx.data' is damaged"):
        read_bundle(path)
