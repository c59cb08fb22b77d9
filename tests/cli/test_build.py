"""From a model file to a bundle and back, with the real passes, on a tiny language model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import optc.ir.readback as readback
from optc.api import registries
from optc.core.grammar import parse_passes
from optc.ir.load import load_canonical
from optc.ir.reference import Reference, Sample, load_reference, save_reference
from optc.parity.oracle import make_reference
from optc.targets.evaluate import open_model

MODEL = "tiny/model.onnx"
Optc = Callable[..., Any]


@pytest.fixture
def pytorch(here: Path) -> Path:
    """`reference.npz` beside the model, as an export leaves it."""
    graph = load_canonical(here / MODEL)
    made = make_reference(graph, open_model, seed=0)
    path = here / "tiny" / "reference.npz"
    return save_reference(dataclasses.replace(made, source="pytorch"), path)


def test_a_bundle_is_named_after_the_models_folder(here: Path, optc: Optc) -> None:
    outcome = optc("build", MODEL, "--passes", "kv,flash")
    assert outcome.code == 0, outcome.err
    assert sorted(p.name for p in (here / "tiny.optc").iterdir()) == [
        "engine.onnx",
        "engine.onnx.data",
        "manifest.json",
        "parity.json",
        "reference.npz",
        "report.html",
        "tokenizer",
    ]
    assert "wrote tiny.optc" in outcome.out


@pytest.mark.parametrize("passes", ["kv,flash", "flash,kv"])
def test_the_order_of_passes_is_ours_and_is_printed(passes: str, here: Path, optc: Optc) -> None:
    outcome = optc("build", MODEL, "--passes", passes)
    assert "passes, in the order they run: flash,kv\n" in outcome.err
    rows = [line.split()[0] for line in outcome.out.splitlines()]
    assert rows[:5] == ["pass", "input", "flash", "kv", "engine"]


def test_json_is_one_document_on_stdout(here: Path, pytorch: Path, optc: Optc) -> None:
    outcome = optc("build", MODEL, "--passes", "kv:max=32,flash", "-o", "a/b/out.optc", "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json
    assert document["schema"] == "optc.build/1"
    assert document["pipeline"] == "kv:max=32,flash"
    assert document["order"] == ["flash", "kv:max=32"]
    assert document["evidence"] == {
        "source": "pytorch",
        "level": "run",
        "text": "against PyTorch, engine run",
    }
    assert [row["pass"] for row in document["rows"]] == ["input", "flash", "kv", "engine"]
    assert [row["rewrites"] for row in document["rows"]] == [0, 1, 1, 0]
    for row in document["rows"]:
        assert row["metrics"]["greedy_equal"] == row["metrics"]["greedy_total"] > 0
    assert document["passed"] is True
    files = [p for p in Path(document["bundle"]).rglob("*") if p.is_file()]
    assert document["bytes"] == sum(p.stat().st_size for p in files)


def test_without_a_reference_the_input_graph_is_the_oracle_and_everything_says_so(
    here: Path, optc: Optc
) -> None:
    outcome = optc("build", MODEL, "--passes", "flash,kv")
    assert "no reference.npz beside the model: the input graph is its own oracle" in outcome.err
    assert "evidence: against the input graph, engine run" in outcome.out
    bundle = here / "tiny.optc"
    assert json.loads((bundle / "parity.json").read_text())["source"] == "graph"
    assert json.loads((bundle / "manifest.json").read_text())["evidence"]["source"] == "graph"
    assert "input graph" in (bundle / "report.html").read_text()
    assert "against the input graph" in optc("verify", "tiny.optc").out
    assert "against the input graph" in optc("inspect", "tiny.optc").out


def test_the_same_inputs_give_the_same_bytes(here: Path, pytorch: Path, optc: Optc) -> None:
    for name in ("one.optc", "two.optc"):
        assert optc("build", MODEL, "--passes", "flash,kv", "-o", name).code == 0
    names = [p.relative_to(here / "one.optc") for p in (here / "one.optc").rglob("*")]
    for name in (name for name in names if (here / "one.optc" / name).is_file()):
        same = (here / "one.optc" / name).read_bytes() == (here / "two.optc" / name).read_bytes()
        assert same, name


def test_an_older_bundle_is_replaced(here: Path, optc: Optc) -> None:
    optc("build", MODEL, "--passes", "flash")
    assert optc("build", MODEL, "--passes", "flash,kv").code == 0
    assert json.loads((here / "tiny.optc" / "manifest.json").read_text())["order"] == [
        "flash",
        "kv",
    ]
    assert sorted(p.name for p in here.iterdir()) == ["tiny", "tiny.optc"]


def test_every_graph_can_be_kept(here: Path, optc: Optc) -> None:
    assert optc("build", MODEL, "--passes", "flash,kv", "--dump-dir", "dumps").code == 0
    found = sorted(p.parent.name for p in (here / "dumps").glob("*/model.onnx"))
    assert found == ["00-input", "01-flash", "02-kv"]
    kept = ir.load(here / "dumps" / "01-flash" / "model.onnx")
    assert "FlashAttention" in {node.op_type for node in kept.graph}


def test_allow_noop_lets_a_pass_find_nothing(here: Path, optc: Optc) -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 18]>\nm (float[N,2] x) => (float[N,2] y) {y = Relu(x)}'
    )
    ir.save(ir.from_onnx_text(text), here / "relu.onnx")
    assert optc("build", "relu.onnx", "--passes", "flash").code == 3
    outcome = optc("build", "relu.onnx", "--passes", "flash", "--allow-noop")
    assert outcome.code == 0, outcome.err
    assert (here / "relu.optc").is_dir()
    outcome = optc("bench", "relu.optc", "--repeats", 1, "--json")
    assert outcome.json["timings"][0]["seconds"] > 0
    assert outcome.json["timings"][0]["tokens_per_second"] is None


def test_a_wrong_reference_stops_the_build_at_once(here: Path, pytorch: Path, optc: Optc) -> None:
    made = load_reference(pytorch)
    wrong = tuple(Sample(s.inputs, {k: v + 1 for k, v in s.outputs.items()}) for s in made.samples)
    save_reference(Reference("pytorch", wrong), pytorch)
    outcome = optc("build", MODEL, "--passes", "flash,kv")
    assert outcome.code == 1
    assert "error: the input graph: " in outcome.err
    assert not (here / "tiny.optc").exists()


def test_a_pass_that_breaks_parity_is_named_and_nothing_is_written(
    here: Path, pytorch: Path, optc: Optc, planted: Callable[[float], None]
) -> None:
    planted(0.5)
    before = sorted(here.rglob("*"))
    outcome = optc("build", MODEL, "--passes", "flash,shift,kv")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("error: pass 'shift': ")
    assert outcome.out == ""
    assert sorted(here.rglob("*")) == before


def test_force_writes_it_and_says_so_everywhere(
    here: Path, pytorch: Path, optc: Optc, planted: Callable[[float], None]
) -> None:
    planted(0.5)
    outcome = optc("build", MODEL, "--passes", "flash,shift,kv", "--force", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["passed"] is False
    assert any("shift" in sentence for sentence in outcome.json["violations"])
    evidence = json.loads((here / "tiny.optc" / "manifest.json").read_text())["evidence"]
    assert (evidence["passed"], evidence["forced"]) == (False, True)
    assert "misses its policy" in (here / "tiny.optc" / "report.html").read_text()
    assert "MISSES its policy, forced" in optc("inspect", "tiny.optc").out
    assert optc("verify", "tiny.optc").code == 1


def test_a_policy_file_decides(
    here: Path, pytorch: Path, optc: Optc, planted: Callable[[float], None]
) -> None:
    planted(1e-3)
    (here / "loose.toml").write_text("[exact]\nrel_l2 = 0.5\n")
    assert optc("build", MODEL, "--passes", "shift").code == 1
    assert optc("build", MODEL, "--passes", "shift", "--policy", "loose.toml").code == 0
    assert optc("verify", "tiny.optc").code == 0, "the bundle remembers its policy"
    (here / "strict.toml").write_text("[exact]\nrel_l2 = 1e-9\n")
    assert optc("verify", "tiny.optc", "--policy", "strict.toml").code == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", "pass 'crash': stopped with KeyError: 'lost' (passes run before it: flash)"),
        ("tear", "pass 'tear': "),
    ],
)
def test_a_pass_that_breaks_its_contract_is_a_bug_with_its_name(
    name: str, words: str, here: Path, optc: Optc, planted: Callable[[float], None]
) -> None:
    planted(0.0)
    outcome = optc("build", MODEL, "--passes", f"flash,{name}")
    assert outcome.code == 4
    assert f"error: {words}" in outcome.err
    assert not (here / "tiny.optc").exists()


def test_bisect_names_pass_and_site(
    here: Path, pytorch: Path, optc: Optc, planted: Callable[[float], None]
) -> None:
    planted(0.5)
    outcome = optc("bisect", MODEL, "--passes", "flash,shift,kv", "--json")
    assert outcome.code == 1
    assert outcome.json["schema"] == "optc.bisect/1"
    assert (outcome.json["name"], outcome.json["site"]) == ("shift", "second")
    text = optc("bisect", MODEL, "--passes", "flash,shift,kv")
    assert [line.split() for line in text.out.splitlines()[:2]] == [
        ["pass", "shift"],
        ["site", "second"],
    ]
    healthy = optc("bisect", MODEL, "--passes", "flash,kv")
    assert (healthy.code, healthy.err.count("error")) == (0, 0)


def test_calibration_inputs_are_the_files_own(
    here: Path, pytorch: Path, optc: Optc, planted: Callable[[float], None]
) -> None:
    feeds = {"input_ids": np.array([[1, 2, 3]])}
    outputs = {"logits": np.zeros((1, 3, 257), np.float32)}
    save_reference(Reference("graph", (Sample(feeds, outputs),)), here / "calibration.npz")
    outcome = optc("build", MODEL, "--passes", "flash", "--calibration", "calibration.npz")
    assert outcome.code == 0, outcome.err


def test_the_pipelines_that_the_help_gives_as_examples_are_valid(optc: Optc) -> None:
    text = " ".join(optc("build", "--help").out.split())
    examples = text.partition("in any order: ")[2].partition(". See")[0].split(" or ")
    assert len(examples) == 2
    for example in examples:
        assert parse_passes(example, registries.passes())


def test_a_small_cache_is_calibrated_and_judged_with_what_fits_in_it(
    here: Path, optc: Optc
) -> None:
    passes = "quant,flash,kv:max=16"
    outcome = optc("build", "tiny/model.onnx", "--passes", passes, "-o", "small.optc")
    assert outcome.code == 0, outcome.err
    assert "calibration samples were cut to 16 tokens, which is what the cache holds" in outcome.err
    samples = "note: 2 of 4 samples left out: they have up to 33 tokens, the cache holds 16"
    assert samples in outcome.out
    verified = optc("verify", "small.optc")
    assert verified.code == 0, verified.err
    assert samples in verified.out


def test_a_cache_too_small_for_any_prompt_says_why_greedy_is_not_judged(
    here: Path, optc: Optc
) -> None:
    options = ("--passes", "flash,kv:max=9", "-o", "small.optc")
    assert optc("build", "tiny/model.onnx", *options).code == 0
    verified = optc("verify", "small.optc").out
    assert "not judged" in verified
    assert "greedy continuations were not judged: no prompt fits in the cache of 9 tok" in verified


def test_a_cache_too_small_for_any_sample_is_an_error(here: Path, optc: Optc) -> None:
    outcome = optc("build", "tiny/model.onnx", "--passes", "quant,flash,kv:max=2")
    assert outcome.code == 2
    assert "none of 4 samples fits in the cache of 2 tokens" in outcome.err
    assert not (here / "model.optc").exists()


def test_a_disk_that_does_not_keep_what_is_written_fails_the_build(
    here: Path, optc: Optc, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = readback.save_model

    def turned(model: ir.Model, path: Path) -> Path:
        write(model, path)
        data = path.with_name(f"{path.name}.data")
        data.write_bytes(data.read_bytes()[:-1] + b"\x55")
        return path

    monkeypatch.setattr(readback, "save_model", turned)
    outcome = optc("build", MODEL, "--passes", "flash,kv")
    assert outcome.code == 2
    assert "the weight 'head' is not what was written: its checksum is another" in outcome.err
    assert not (here / "tiny.optc").exists()
    assert [path.name for path in here.iterdir()] == ["tiny"]
