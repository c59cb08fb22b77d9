"""The real model, exported once per checkout and opset into `build/`, as `make demo` does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


def run_optc(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optc.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture(scope="session")
def optc() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line as a user does."""
    return run_optc


@pytest.fixture(scope="session")
def source() -> Path:
    """The folder that holds SmolLM2-135M-Instruct."""
    fetch = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "fetch_smollm2.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert fetch.returncode == 0, fetch.stderr
    return BUILD / "models" / "smollm2"


@pytest.fixture(scope="session")
def smollm2_18(source: Path) -> Path:
    """`model.onnx` at opset 18, attention decomposed; `reference.npz` beside it."""
    return exported(source, BUILD / "smollm2", 18)


@pytest.fixture(scope="session")
def smollm2_23(source: Path) -> Path:
    """`model.onnx` at opset 23, standard `Attention` and batch-1 rotary tables."""
    return exported(source, BUILD / "smollm2-opset23", 23)


@pytest.fixture(scope="session", params=[18, 23], ids=["opset18", "opset23"])
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The export at each opset in turn."""
    name = f"smollm2_{request.param}"
    model: Path = request.getfixturevalue(name)
    return model


def exported(source: Path, folder: Path, opset: int) -> Path:
    model = folder / "model.onnx"
    if not model.is_file():
        done = run_optc("export", source, "-o", folder, "--opset", str(opset))
        assert done.returncode == 0, done.stderr
    return model
