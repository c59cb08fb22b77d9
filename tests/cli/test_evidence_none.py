"""A build that runs no graph, for a model that the machine cannot run, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optc.ir.load import load_canonical
from optc.ir.reference import save_reference
from optc.parity.oracle import make_reference
from optc.targets import evaluate, ort_session
from optc.targets.evaluate import open_model

MODEL = "tiny/model.onnx"
BUILD = ("build", MODEL, "--passes", "flash,kv", "-o", "out.optc", "--evidence", "none")
Optc = Callable[..., Any]


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens the model to run it fails; slices of it without weights may be evaluated."""
    usual = ort_session._options_to_run
    write = evaluate.save_model

    def no_engine(threads: int | None) -> Any:
        if any(path.name == "engine.onnx" for path in Path().rglob("*")):
            raise AssertionError("the engine was opened to be run")
        return usual(threads)

    def no_model(model: ir.Model, path: Path) -> Path:
        if any(output.name == "logits" for output in model.graph.outputs):
            raise AssertionError("the model was written to be run")
        return write(model, path)

    monkeypatch.setattr(ort_session, "_options_to_run", no_engine)
    monkeypatch.setattr(evaluate, "save_model", no_model)


@pytest.fixture
def pytorch(here: Path) -> Path:
    """`reference.npz` beside the model, as an export leaves it."""
    made = make_reference(load_canonical(here / MODEL), open_model, seed=0)
    path = here / "tiny" / "reference.npz"
    return save_reference(dataclasses.replace(made, source="pytorch"), path)


@pytest.mark.usefixtures("nothing_runs")
def test_no_graph_is_run_and_the_bundle_says_so(here: Path, optc: Optc) -> None:
    outcome = optc(*BUILD)
    assert outcome.code == 0, outcome.err
    assert "evidence: against nothing (no answers were compared), engine built" in outcome.out
    assert (
        "note: nothing was compared: what the passes did to the numbers is not known" in outcome.out
    )
    assert "nan" not in outcome.out
    manifest = json.loads((here / "out.optc" / "manifest.json").read_text())
    evidence = manifest["evidence"]
    assert (evidence["source"], evidence["level"], evidence["passed"]) == ("none", "built", False)
    assert "reference.npz" not in manifest["files"]
    report = (here / "out.optc" / "report.html").read_text(encoding="utf-8")
    assert "Nothing was compared, as the build was asked" in report
    assert "not measured" in report
    assert "within its policy" not in report


def test_the_engine_is_the_one_of_a_build_with_evidence(here: Path, optc: Optc) -> None:
    optc(*BUILD)
    optc("build", MODEL, "--passes", "flash,kv", "-o", "full.optc")
    for name in ("engine.onnx", "engine.onnx.data"):
        without, full = (here / folder / name for folder in ("out.optc", "full.optc"))
        assert without.read_bytes() == full.read_bytes()


def test_programs_read_that_nothing_was_judged(here: Path, optc: Optc) -> None:
    document = json.loads(optc(*BUILD, "--json").out)
    assert document["passed"] is None
    assert document["evidence"]["source"] == "none"
    assert [row["pass"] for row in document["rows"]] == ["input", "flash", "kv"]
    assert all(row["metrics"]["rel_l2"] is None for row in document["rows"])


def test_verify_checks_what_there_is_and_says_what_it_cannot(here: Path, optc: Optc) -> None:
    optc(*BUILD)
    outcome = optc("verify", "out.optc")
    assert outcome.code == 0, outcome.err
    assert "opens" in outcome.out
    assert "not judged" in outcome.out
    assert "it carries no samples" in " ".join(outcome.out.split())
    assert json.loads(optc("verify", "out.optc", "--json").out)["passed"] is None


def test_verify_still_finds_a_damaged_engine(here: Path, optc: Optc) -> None:
    optc(*BUILD)
    data = here / "out.optc" / "engine.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x55")
    outcome = optc("verify", "out.optc")
    assert outcome.code == 2
    assert "engine.onnx.data' is damaged" in outcome.err


def test_samples_beside_the_model_travel_and_are_judged_elsewhere(
    here: Path, pytorch: Path, optc: Optc
) -> None:
    outcome = optc(*BUILD)
    assert "against nothing" in outcome.out
    outcome = optc("verify", "out.optc")
    assert outcome.code == 0, outcome.err
    assert "against PyTorch, engine run" in outcome.out


def test_inspect_does_not_call_it_forced(here: Path, optc: Optc) -> None:
    optc(*BUILD)
    outcome = optc("inspect", "out.optc")
    assert "against nothing (no answers were compared), engine built; not measured" in outcome.out
    assert re.search(r"^measured +nothing$", outcome.out, re.MULTILINE)


def test_where_a_graph_was_run_to_calibrate_nobody_says_that_none_was(
    here: Path, optc: Optc
) -> None:
    np.savez(here / "mine.npz", input_ids=np.arange(48).reshape(4, 12) % 7)
    quant = ("--passes", "quant:method=gptq:scheme=int4:max-drift=10", "--calibration", "mine.npz")
    outcome = optc("build", MODEL, *quant, "-o", "q.optc", "--evidence", "none")
    assert outcome.code == 0, outcome.err
    said = outcome.out + outcome.err + optc("inspect", "q.optc").out
    said += (here / "q.optc" / "report.html").read_text(encoding="utf-8")
    assert "against nothing" in said
    assert "no graph was run" not in said.lower()
    assert "run no graph" not in said.lower()


def test_what_calibrates_asks_for_data(here: Path, pytorch: Path, optc: Optc) -> None:
    """Samples beside the model are not used: calibrating runs the graph."""
    quant = ("build", MODEL, "--passes", "quant", "-o", "q.optc", "--evidence", "none")
    outcome = optc(*quant)
    assert outcome.code == 2
    assert "give --calibration" in outcome.err
    outcome = optc(*quant, "--calibration", "tiny/reference.npz")
    assert outcome.code == 0, outcome.err


def test_another_word_for_it_is_refused(here: Path, optc: Optc) -> None:
    outcome = optc("build", MODEL, "--passes", "flash", "--evidence", "some")
    assert outcome.code == 2
    assert "'some' is no kind of evidence; give one of full, none" in outcome.err
