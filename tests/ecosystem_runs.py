"""Ask a runtime that lives in the environment of `make test-ecosystem`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / "build" / "ecosystem" / "bin" / "python"
SCRIPTS = ROOT / "tests" / "ecosystem"

needs_environment = pytest.mark.skipif(
    not (PYTHON.parent.parent / ".installed").is_file(),
    reason="its environment is set up by make test-ecosystem",
)


def ask(runtime: str, folder: Path, **request: Any) -> dict[str, Any]:
    """What a runtime says about a folder; see `tests/ecosystem/ask_RUNTIME.py`."""
    done = subprocess.run(
        [str(PYTHON), str(SCRIPTS / f"ask_{runtime}.py"), str(folder)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return {**answer, "warnings": done.stderr}


def optc(here: Path, *words: str | Path) -> str:
    """Run a command line of ours; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "optc.cli.main", *map(str, words)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def greedy(bundle: Path, prompts: list[str], new: int) -> list[list[int]]:
    """The tokens that `optc run` writes, one prompt at a time."""
    found = []
    for prompt in prompts:
        words = ("--prompt", prompt, "--max-tokens", str(new), "--json")
        document = json.loads(optc(bundle.parent, "run", bundle.name, *words))
        found += [completion["tokens"] for completion in document["completions"]]
    return found
