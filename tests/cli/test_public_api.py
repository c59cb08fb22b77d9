"""`import optc`: what is public, and that it costs nothing until it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import optc

ROOT = Path(__file__).resolve().parents[2]


def test_all_names_exist_are_sorted_and_documented() -> None:
    assert list(optc.__all__) == sorted(set(optc.__all__))
    for name in optc.__all__:
        value = getattr(optc, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert set(optc.__all__) <= set(dir(optc))


def test_functions_document_every_argument_or_refer_to_where_they_are() -> None:
    for name in ("build", "verify", "run", "bench", "export", "reference", "bisect", "package"):
        function = getattr(optc, name)
        text = inspect.getdoc(function) or ""
        missing = [p for p in inspect.signature(function).parameters if f"{p}:" not in text]
        assert not missing or "Arguments" in text, (name, missing)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(optc, "no_such_thing")


def test_import_is_light() -> None:
    code = "import sys, optc; print({'numpy', 'onnx_ir', 'torch'} & set(sys.modules) or 'light')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "light"


def test_build_verify_and_run_from_python(here: Path) -> None:
    said: list[str] = []
    result = optc.build("tiny/model.onnx", "kv,flash", out="x.optc", log=said.append)
    assert result.bundle == Path("x.optc")
    assert result.order == ("flash", "kv")
    assert said[-1].startswith("kv: 1 rewritten") or any("kv: 1 rewritten" in s for s in said)
    assert optc.verify("x.optc").violations == ()
    found = optc.run("x.optc", ["hi"], max_tokens=5)
    assert len(found.completion.tokens[0]) == 5
    with optc.open_bundle("x.optc") as opened:
        assert "input_ids" in {port.name for port in opened.session.inputs}
