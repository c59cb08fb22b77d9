from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optc.bundle.manifest import Engine, Evidence, Manifest
from optc.bundle.write import write_bundle
from optc.core.session import Port

Fill = Callable[[Path], Manifest]

MANIFEST = Manifest(
    pipeline="quant,flash",
    order=("flash", "quant"),
    options={"flash": {}, "quant": {"scheme": "int8", "ratio": 0.5}},
    versions={"optc": "0.1.0", "onnx": "1.23.2"},
    target="ort",
    engine=Engine(
        files=("engine.onnx",),
        roles={"prefill": "engine.onnx", "decode": "engine.onnx"},
        runtime="onnxruntime",
        runtime_version="1.32.0",
        hardware="any CPU",
        inputs=(Port("input_ids", "int64", ("batch", "new")),),
        outputs=(Port("logits", "float32", ("batch", "new", 7)),),
    ),
    evidence=Evidence(
        level="run",
        source="pytorch",
        metrics={"max_abs": 1e-6, "kl": None},
        policy={"max_abs": 1e-3},
        passed=True,
        forced=False,
    ),
    extra={"eos": [2, 0]},
)


def fill(folder: Path) -> Manifest:
    """A bundle that needs no runtime: its engine is 64 bytes."""
    (folder / "engine.onnx").write_bytes(bytes(range(64)))
    (folder / "reference.npz").write_bytes(b"samples")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return MANIFEST


@pytest.fixture
def manifest() -> Manifest:
    return MANIFEST


@pytest.fixture
def filler() -> Fill:
    return fill


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "model.optc", fill)
