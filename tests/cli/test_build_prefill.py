"""`--prefill`: one bundle, two engines, each with passes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optc.api.prefill import calls_of, check_alike, read_prefill
from optc.api.registries import passes
from optc.api.sessions import open_bundle, opened, target_of
from optc.bundle.manifest import Manifest
from optc.bundle.read import read_bundle
from optc.bundle.write import hash_file
from optc.core.errors import BundleError, UsageError
from optc.core.pipeline import Pipeline
from optc.rewrite.quant_grid import Grid
from optc.targets.ort import Ort
from optc.targets.speed import Instead, Kind, Speed, Timing

MODEL = "tiny/model.onnx"
PASSES = "flash,kv,quant:scheme=w8"
PREFILL = "quant:scheme=int8-dynamic"
Optc = Callable[..., Any]


def build(optc: Optc, *more: object) -> Any:
    return optc("build", MODEL, "--passes", PASSES, "--prefill", PREFILL, *more)


@pytest.fixture
def bundle(here: Path, optc: Optc) -> Path:
    outcome = build(optc)
    assert outcome.code == 0, outcome.err
    return here / "tiny.optc"


def test_both_are_measured_after_each_pass_and_once_more_as_engines(here: Path, optc: Optc) -> None:
    outcome = build(optc, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json
    assert [row["text"] for row in document["rows"]] == [
        "input",
        "flash",
        "kv",
        "quant:scheme=w8",
        "prefill: quant:scheme=int8-dynamic",
        "prefill engine (ort)",
        "decode engine (ort)",
        "engine (ort)",
    ]
    assert document["prefill"] == {
        "pipeline": PREFILL,
        "order": ["flash", "kv", "quant:scheme=int8-dynamic"],
        "from": 9,
    }
    by_name = {row["pass"]: row for row in document["rows"]}
    for name in ("quant", "prefill: quant"):
        assert by_name[name]["metrics"]["kl"] > 0
    alone = [by_name[f"{role} engine"]["weight_bytes"] for role in ("prefill", "decode")]
    assert by_name["engine"]["weight_bytes"] == sum(alone), "the size of both is counted"


def test_the_manifest_says_who_plays_which_role(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert manifest.engine.roles == {"prefill": "prefill.onnx", "decode": "engine.onnx"}
    assert {"engine.onnx", "prefill.onnx"} < set(manifest.engine.files) <= set(manifest.files)
    assert manifest.engine.prefill_from == 9
    assert manifest.order == ("flash", "kv", "quant:scheme=w8")
    said = manifest.extra["prefill"]
    assert said["order"] == ["flash", "kv", PREFILL]
    assert said["options"]["quant"]["scheme"] == "int8-dynamic"
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("value", [None, 1, "9", True, 9.5])
def test_a_manifest_that_does_not_say_from_where_on_is_refused(value: Any, bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document["engine"]["details"]["prefill"]["from"] = value
    with pytest.raises(BundleError, match="does not say from how many tokens on"):
        Manifest.from_json(json.dumps(document))


def test_an_engine_that_decodes_must_be_there(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    del document["engine"]["roles"]["decode"]
    with pytest.raises(BundleError, match="an engine for prefill needs another to decode"):
        Manifest.from_json(json.dumps(document))


def test_the_same_inputs_give_the_same_bytes_of_both(here: Path, optc: Optc) -> None:
    for name in ("one.optc", "two.optc"):
        assert build(optc, "-o", name).code == 0
    one, two = (
        {path.name: path.read_bytes() for path in (here / name).glob("*") if path.is_file()}
        for name in ("one.optc", "two.optc")
    )
    assert "prefill.onnx" in one
    assert one == two


@pytest.mark.parametrize(("start", "tokens"), [(None, (8, 9)), (3, (2, 3))])
def test_the_threshold_is_honoured_on_both_sides(
    start: int | None, tokens: tuple[int, int], here: Path, optc: Optc
) -> None:
    more = () if start is None else ("--prefill-from", start)
    assert build(optc, *more).code == 0
    found = read_bundle("tiny.optc")
    target, engine = target_of(found), found.manifest.engine
    answers = {}
    for role in (None, "decode", "prefill"):
        with opened(target, found.folder, engine, role=role) as session:
            for count in tokens:
                feeds = {"input_ids": np.arange(count)[None], "cache_lengths": np.zeros(1, int)}
                empty = {
                    f"past_key_values.0.{part}": np.zeros((1, 2, 0, 8), np.float32)
                    for part in ("key", "value")
                }
                answers[role, count] = session.run({**feeds, **empty})["logits"]
    for count, role in zip(tokens, ("decode", "prefill"), strict=True):
        other = "decode" if role == "prefill" else "prefill"
        np.testing.assert_array_equal(answers[None, count], answers[role, count])
        assert (answers[role, count] != answers[other, count]).any()


def test_commands_take_it_as_any_other_bundle(bundle: Path, optc: Optc) -> None:
    said = optc("run", "tiny.optc", "--prompt", "a prompt of many tokens", "--max-tokens", 6)
    assert said.code == 0, said.err
    timed = optc("bench", "tiny.optc", "--prompt-lengths", "4,16", "--repeats", 1, "--json").json
    assert [row["tokens_per_second"] > 0 for row in timed["timings"]] == [True, True]
    shown = optc("inspect", "tiny.optc").out
    assert "decode; prefill.onnx (" in " ".join(shown.split())
    assert "prefill from 9 new tokens on" in " ".join(shown.split())


def test_running_it_does_not_import_the_compiler(bundle: Path) -> None:
    code = (
        "import sys, optc; optc.run('tiny.optc', ['a prompt of many tokens'], max_tokens=3)\n"
        "assert 'onnx_ir' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=bundle.parent, env=environment)


def test_verify_judges_each_engine_and_both_together(bundle: Path, optc: Optc) -> None:
    document = optc("verify", "tiny.optc", "--json").json
    assert document["passed"] is True
    words = [check["sentence"].split(",")[0] for check in document["checks"]]
    for role in ("prefill", "decode"):
        assert words.count(f"of the {role} engine alone") == 3


@pytest.mark.parametrize("file", ["prefill.onnx", "engine.onnx"])
def test_verify_sees_what_was_done_to_either_engine(file: str, bundle: Path, optc: Optc) -> None:
    """Weights that somebody changed together with the hashes."""
    model = ir.load(bundle / file)
    changed = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > 99:
            array = np.ascontiguousarray(tensor.numpy()[::-1])
            value.const_value = ir.tensor(array, name=value.name)
            changed += 1
    assert changed
    ir.save(model, bundle / file, external_data=f"{file}.data")
    document = json.loads((bundle / "manifest.json").read_text())
    for name in (file, f"{file}.data"):
        entry = hash_file(bundle / name)
        document["files"][name] = {"size": entry.size, "sha256": entry.sha256}
    (bundle / "manifest.json").write_text(json.dumps(document))
    outcome = optc("verify", "tiny.optc")
    assert outcome.code == 1
    role = "prefill" if file == "prefill.onnx" else "decode"
    assert f"of the {role} engine alone, " in outcome.err


def test_without_evidence_both_are_opened(here: Path, optc: Optc) -> None:
    loose = ("--evidence", "none")
    assert build(optc, *loose).code == 0
    assert optc("verify", "tiny.optc").code == 0
    with open_bundle("tiny.optc") as found:
        assert found.session.inputs == found.bundle.manifest.engine.inputs


def test_every_graph_of_both_can_be_kept(here: Path, optc: Optc) -> None:
    assert build(optc, "--dump-dir", "dumps").code == 0
    found = sorted(str(path.parent.relative_to("dumps")) for path in Path("dumps").rglob("*.onnx"))
    assert found == [
        "00-input",
        "01-flash",
        "02-kv",
        "03-quant",
        "prefill/00-input",
        "prefill/01-quant",
    ]


@pytest.mark.parametrize("runtime", ["genai", "optimum"])
def test_other_runtimes_get_the_engine_that_decodes_and_are_told_so(
    runtime: str, bundle: Path, optc: Optc
) -> None:
    words = ("package", "tiny.optc", "--for", runtime, "--context", 32)
    outcome = optc(*words, "-o", "one")
    assert outcome.code == 0, outcome.err
    assert "note: it has the engine that decodes, and no other" in outcome.out
    assert len(optc(*words, "-o", "two", "--json").json["notes"]) == 1
    packed, engine = ir.load("one/model.onnx"), ir.load(bundle / "engine.onnx")
    counts = [
        sum(node.op_type == "MatMulNBits" for node in model.graph) for model in (packed, engine)
    ]
    assert counts[0] == counts[1]


def test_an_engine_alone_in_its_bundle_is_packaged_without_a_word(here: Path, optc: Optc) -> None:
    assert optc("build", MODEL, "--passes", "flash,kv").code == 0
    outcome = optc("package", "tiny.optc", "--for", "genai", "--context", 32, "-o", "one")
    assert "note:" not in outcome.out


def test_neither_engine_can_be_built_from(bundle: Path, optc: Optc) -> None:
    for name in ("engine.onnx", "prefill.onnx"):
        outcome = optc("build", f"tiny.optc/{name}", "--passes", "flash")
        assert outcome.code == 2
        assert "it is a built engine" in outcome.err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (
            ["--passes", "flash,kv", "--prefill", PREFILL],
            2,
            "--prefill: the pass 'quant' is not in the pipeline, so there is nothing to replace; "
            "name flash or kv, or add it to --passes",
        ),
        (
            ["--passes", "flash,quant:scheme=w8", "--prefill", PREFILL],
            2,
            "--prefill: without a cache there is one kind of call, and nothing to prefill; "
            "add kv to --passes",
        ),
        (
            ["--passes", PASSES, "--prefill", "quant:scheme=w8"],
            2,
            "--prefill: 'quant:scheme=w8' is what the pipeline says already",
        ),
        (["--passes", PASSES, "--prefill", ""], 2, "--prefill: no pass is named"),
        (
            ["--passes", PASSES, "--prefill", "quant,quant"],
            2,
            "--prefill: the pass 'quant' is named",
        ),
        (["--passes", PASSES, "--prefill", "qant"], 2, "--prefill: there is no pass 'qant'; did"),
        (
            ["--passes", PASSES, "--prefill", "quant:scheme=w8:4"],
            2,
            "--prefill quant: '4' is not of",
        ),
        (["--passes", PASSES, "--prefill", "quant:scheme=w9"], 2, "'w9' is not allowed"),
        (
            ["--passes", PASSES, "--prefill-from", "4"],
            2,
            "--prefill-from: there is no engine for prefill; give its passes with --prefill",
        ),
        (
            ["--passes", PASSES, "--prefill", PREFILL, "--prefill-from", "1"],
            2,
            "--prefill-from: from 1 new tokens on, nothing is left to the engine that decodes; "
            "the smallest number is 2",
        ),
        (
            ["--passes", PASSES, "--prefill", PREFILL, "--prefill-from", "2147483648"],
            2,
            "--prefill-from: no call has so many new tokens, so nothing is left to the engine for "
            "prefill; the largest number is 2147483647",
        ),
        (
            ["--passes", "flash,kv", "--prefill", "kv:max=32", "--evidence", "none"],
            2,
            "--prefill: 'kv:max' is another than in --passes, and caches would not be alike; "
            "give both the same",
        ),
        (
            ["--passes", "flash,kv", "--prefill", "kv:logits=last", "--evidence", "none"],
            2,
            "--prefill: 'kv:logits' is another than in --passes",
        ),
    ],
)
def test_what_makes_no_second_engine_is_refused_with_a_sentence(
    words: list[str], code: int, sentence: str, here: Path, optc: Optc
) -> None:
    outcome = optc("build", MODEL, *words)
    assert outcome.code == code, outcome.err
    assert sentence in outcome.err
    assert outcome.err.count("error:") == 1
    assert not (here / "tiny.optc").exists()


def test_what_cannot_start_is_refused_before_the_first_engine_is_quantised(
    here: Path, optc: Optc
) -> None:
    words = ("--prefill", "quant:scheme=int8", "--evidence", "none", "--dump-dir", "dumps")
    outcome = optc("build", MODEL, "--passes", PASSES, *words)
    assert outcome.code == 2
    assert "--prefill: pass 'quant': int8 activations need calibration data" in outcome.err
    assert not list((here / "dumps").glob("*quant"))


@pytest.mark.parametrize("other", ["float[N] y, float[N] z", "float[N] z"])
def test_engines_that_take_or_give_other_arrays_share_no_caches(other: str) -> None:
    one, two = (
        ir.from_onnx_text(
            f'<ir_version: 11, opset_import: ["": 24]> m (float[N] x) => ({outputs}) '
            "{ y = Neg(x) z = Abs(x) }"
        )
        for outputs in ("float[N] y", other)
    )
    with pytest.raises(UsageError, match="the engine gives other arrays"):
        check_alike(one, two)


@pytest.mark.parametrize(
    "roles",
    [
        {"prefill": "parity.json", "decode": "engine.onnx"},
        {"prefill": "engine.onnx", "decode": "prefill.onnx"},
        {"prefill": "prefill.onnx", "decode": "engine.onnx", "draft": "engine.onnx"},
    ],
    ids=["another file", "swapped", "one more"],
)
def test_roles_of_files_that_are_not_opened_for_them_are_refused(
    roles: dict[str, str], bundle: Path, optc: Optc
) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document["engine"]["roles"] = roles
    (bundle / "manifest.json").write_text(json.dumps(document))
    for command in (
        ("verify", "tiny.optc"),
        ("run", "tiny.optc", "--prompt", "a"),
        ("bench", "tiny.optc", "--repeats", 1),
        ("package", "tiny.optc", "--for", "genai", "--context", 32, "-o", "one"),
    ):
        outcome = optc(*command)
        assert outcome.code == 2, command
        assert "the target 'ort' opens decode engine.onnx, prefill prefill.onnx" in outcome.err


def test_each_engine_is_timed_for_the_calls_that_it_runs() -> None:
    kind = Kind(64, (64,), Grid(4, 32, False))
    timed = Speed(kind, 1, (Timing(1, 0.5, 0.0), Timing(128, 1.5, 1.0)), Instead("w8", 0.5))
    graph = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["": 24]> m (float[N] x) => (float[N] y) { y = Neg(x) }'
    )
    prefill = read_prefill(PREFILL, None, Pipeline.parse(PASSES, passes()), Ort())
    decode, prompt = calls_of(graph, graph, prefill)
    assert timed.among(decode[1]).timings == (Timing(1, 0.5, 0.0),)
    assert timed.among(decode[1]).instead is None, "what is slower there it does not run"
    assert timed.among(prompt[1]).timings == (Timing(128, 1.5, 1.0),)
    assert timed.among(prompt[1]).instead == Instead("w8", 0.5)
    ((_, every),) = calls_of(graph, None, None)
    assert timed.among(every) == timed
