"""Files that we write load in the ONNX checker, ONNX Runtime and TensorRT-RTX's parser.

The last one is installed on Linux only.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optc.core.context import Context
from optc.ir.canonical import OPSET
from optc.ir.external import check_external_data
from optc.ir.readback import save_checked
from optc.passes.quant import Quant
from optc.targets.evaluate import OrtEvaluator, check_file
from optc.targets.ort import ENGINE, Ort
from optc.targets.ort_session import OrtSession

X = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
PASSES = {
    "wide": None,
    "int8": Quant(scheme="int8", max_drift=1e9),
    "w8": Quant(scheme="w8", max_drift=1e9),
    "int4": Quant(scheme="int4", method="rtn", symmetric=True, max_drift=1e9),
    "int4 with zero points": Quant(scheme="int4", method="rtn", max_drift=1e9),
}
UNSIGNED = "int4 with zero points"
PARSE = """
import sys, tensorrt_rtx as trt
log = trt.Logger(trt.Logger.ERROR)
typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
network = trt.Builder(log).create_network(typed)
parser = trt.OnnxParser(network, log)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
print(network.num_layers)
"""


def canonical(name: str) -> ir.Model:
    """Two layers, quantised; weights large enough to lie in a file of their own."""
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": {OPSET}]>
        g (float[B, S, 64] x) => (float[B, S, 64] y) {{
          a = MatMul(x, up)
          b = Relu(a)
          y = MatMul(b, down)
        }}"""
    )
    rng = np.random.default_rng(1)
    for weight, shape in {"up": (64, 128), "down": (128, 64)}.items():
        tensor = ir.tensor(rng.normal(size=shape).astype(np.float32) / 8, name=weight)
        value = next(v for node in model.graph for v in node.inputs if v and v.name == weight)
        value.const_value = tensor
        model.graph.register_initializer(value)
    quant = PASSES[name]
    if quant is not None:
        context = Context(evaluate=OrtEvaluator(), calibration=[{"x": X}, {"x": X[::-1]}] * 2)
        assert quant.run(model, context).rewrites == 2
    return model


@pytest.fixture(params=PASSES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A canonical graph on disk, as `--dump-dir` writes it."""
    return save_checked(canonical(request.param), tmp_path / "model.onnx")


def test_canonical_graphs_pass_the_checker_and_run(path: Path) -> None:
    onnx.checker.check_model(path, full_check=True)
    check_external_data(path)
    with OrtSession(path) as session:
        assert np.isfinite(session.run({"x": X})["y"]).all()


@pytest.mark.parametrize("name", PASSES)
def test_engines_pass_the_checker_and_run(name: str, tmp_path: Path) -> None:
    Ort().build(Ort().lower(canonical(name)), tmp_path)
    check_file(tmp_path / ENGINE)
    with Ort().open(tmp_path) as session:
        assert np.isfinite(session.run({"x": X})["y"]).all()


@pytest.mark.parametrize("name", PASSES)
def test_an_engine_opened_lightly_has_the_same_signature(name: str, tmp_path: Path) -> None:
    Ort().build(Ort().lower(canonical(name)), tmp_path)
    with Ort().open(tmp_path) as full, Ort().open_lightly(tmp_path) as light:
        assert (light.inputs, light.outputs) == (full.inputs, full.outputs)


def test_what_other_tools_expect_of_a_file(path: Path) -> None:
    """One data file beside the model, named after it; versions that runtimes know."""
    proto = onnx.load(path, load_external_data=False)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    stored = [t for t in proto.graph.initializer if t.external_data]
    assert {
        entry.value for t in stored for entry in t.external_data if entry.key == "location"
    } == {"model.onnx.data"}
    assert {len(t.external_data) for t in stored} == {3}  # location, offset, length
    assert proto.ir_version <= 11
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": OPSET}


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
@pytest.mark.parametrize("name", [name for name in PASSES if name != UNSIGNED])
def test_tensorrt_rtx_parses_canonical_graphs(name: str, tmp_path: Path) -> None:
    """In a process of its own, which the parser ends where it does not like a graph."""
    written = save_checked(canonical(name), tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(written)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2
