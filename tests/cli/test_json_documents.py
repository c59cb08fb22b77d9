"""`docs/json.md` names every key of every document, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Optc = Callable[..., Any]

DOCS = Path(__file__).resolve().parents[2] / "docs" / "json.md"


def documented(heading: str, table: int = 0) -> set[str]:
    """Keys in the first column of a section's table."""
    section = re.split(r"^## ", DOCS.read_text(), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(f"{heading}\n"))
    tables = re.findall(r"^\| key \|.*?(?=^[^|]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    cells = [line.split("|")[1] for line in tables[table].splitlines()[2:] if line]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.fixture
def built(here: Path, optc: Optc) -> dict[str, Any]:
    return dict(optc("build", "tiny/model.onnx", "--passes", "kv,flash", "--json").json)


def test_build(built: dict[str, Any]) -> None:
    assert set(built) == documented("optc.build/1")
    for row in built["rows"]:
        assert set(row) == documented("Rows")


@pytest.mark.parametrize(
    ("heading", "table", "words"),
    [
        ("optc.inspect/1", 0, ["inspect", "tiny/model.onnx"]),
        ("optc.inspect/1", 1, ["inspect", "tiny.optc"]),
        ("optc.verify/1", 0, ["verify", "tiny.optc"]),
        ("optc.run/1", 0, ["run", "tiny.optc", "--prompt", "x", "--max-tokens", "2"]),
        ("optc.bench/1", 0, ["bench", "tiny.optc", "--prompt-lengths", "2", "--repeats", "1"]),
        ("optc.package/1", 0, ["package", "tiny.optc", "--for=genai", "-o", "x", "--context=9"]),
        ("optc.bisect/1", 0, ["bisect", "tiny/model.onnx", "--passes", "flash"]),
        ("optc.passes/1", 0, ["passes", "flash"]),
        ("optc.targets/1", 0, ["targets"]),
    ],
)
def test_other_commands(
    heading: str, table: int, words: list[str], built: dict[str, Any], optc: Optc
) -> None:
    outcome = optc(*words, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["schema"] == heading
    assert set(outcome.json) == documented(heading, table)


def test_errors(here: Path, optc: Optc) -> None:
    outcome = optc("build", "tiny/model.onnx", "--passes", "prune", "--json")
    assert outcome.code == 3
    assert set(outcome.json) - {"site", "reason"} == documented("optc.error/1") - {"site", "reason"}
    assert outcome.json["exit_code"] == 3
