"""Commands on a bundle: verify, run, bench, inspect; and the lists of passes and targets."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from optc.api import registries
from optc.cli.main import cli
from optc.core.pipeline import Pipeline
from optc.ir.load import load_canonical
from optc.runtime.tokenizer import load_tokenizer
from optc.targets.evaluate import open_model

Optc = Callable[..., Any]


@pytest.fixture(scope="module")
def built(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny language model, with a static cache of 40 tokens."""
    out = tmp_path_factory.mktemp("built") / "tiny.optc"
    words = [
        "build",
        str(tiny_source / "model.onnx"),
        "--passes",
        "kv:max=40,flash",
        "-o",
        str(out),
    ]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def bundle(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own for each test, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(built, tmp_path / "tiny.optc")).relative_to(tmp_path)


def greedy(tiny_source: Path, prompt: str, count: int) -> str:
    """What the exported graph continues with, computed without our loop."""
    tokenizer = load_tokenizer(tiny_source)
    tokens = tokenizer.encode(prompt)
    start = len(tokens)
    with open_model(load_canonical(tiny_source / "model.onnx")) as session:
        for _ in range(count):
            logits = session.run({"input_ids": np.array([tokens])})["logits"]
            tokens.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(tokens[start:])


def test_verify_replays_the_samples_and_says_what_it_found(bundle: Path, optc: Optc) -> None:
    outcome = optc("verify", bundle, "--json", "--junit", "junit.xml")
    assert outcome.code == 0, outcome.err
    assert outcome.json["schema"] == "optc.verify/1"
    assert outcome.json["passed"] is True
    assert outcome.json["signature"] == "none"
    assert {check["holds"] for check in outcome.json["checks"]} == {True}
    suite = ET.parse("junit.xml").getroot()
    assert int(suite.attrib["tests"]) == len(outcome.json["checks"])
    assert suite.attrib["failures"] == "0"


def test_a_missed_policy_is_exit_1_with_the_document_printed(bundle: Path, optc: Optc) -> None:
    Path("strict.toml").write_text("[exact]\nmax_abs = 1e-30\n")
    outcome = optc("verify", bundle, "--policy", "strict.toml", "--json", "--junit", "junit.xml")
    assert outcome.code == 1
    assert outcome.json["passed"] is False
    assert outcome.err.splitlines()[-1].startswith("error: tiny.optc: the largest absolute error")
    assert ET.parse("junit.xml").getroot().attrib["failures"] == "1"


@pytest.mark.parametrize("command", [["verify"], ["inspect"], ["run", "--prompt", "x"], ["bench"]])
def test_a_damaged_bundle_is_refused_by_every_command(
    command: list[str], bundle: Path, optc: Optc
) -> None:
    with (bundle / "engine.onnx").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    outcome = optc(*command, bundle)
    assert outcome.code == 2
    assert "'engine.onnx' is damaged" in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("command", [["verify"], ["run", "--prompt", "x"], ["bench"]])
@pytest.mark.parametrize("what", ["missing.optc", "."])
def test_what_is_no_bundle_is_refused(
    command: list[str], what: str, bundle: Path, optc: Optc
) -> None:
    outcome = optc(*command, what)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1


def test_run_continues_the_prompt_as_the_exported_graph_does(
    bundle: Path, tiny_source: Path, optc: Optc
) -> None:
    outcome = optc("run", bundle, "--prompt", "hello", "--max-tokens", 20, "--json")
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["completions"]
    assert row["text"] == greedy(tiny_source, "hello", 20).rstrip("\ufffd")
    assert row["finish"] == "length"
    assert outcome.json["stats"]["new_tokens"] == len(row["tokens"]) == 20


def test_run_prints_the_text_and_tells_speed_and_memory_on_stderr(bundle: Path, optc: Optc) -> None:
    plain = optc("run", bundle, "--prompt", "hello", "--max-tokens", 12)
    streamed = optc("run", bundle, "--prompt", "hello", "--max-tokens", 12, "--stream")
    assert plain.out == streamed.out
    assert "5 + 12 tokens, first after" in plain.err
    assert "tokens/s" in plain.err
    assert "peak memory" in plain.err


def test_run_takes_several_prompts_and_sampling_with_a_seed(bundle: Path, optc: Optc) -> None:
    words = ["--prompt", "hello", "--prompt", "b", "--max-tokens", 9, "--temperature", 1.5]
    words += ["--top-k", 40, "--top-p", 0.9, "--json"]
    first = optc("run", bundle, *words, "--seed", 3).json["completions"]
    again = optc("run", bundle, *words, "--seed", 3).json["completions"]
    other = optc("run", bundle, *words, "--seed", 4).json["completions"]
    assert first == again
    assert first != other
    assert len(first) == 2


def test_run_stops_at_a_string(bundle: Path, optc: Optc) -> None:
    full = optc("run", bundle, "--prompt", "hello", "--max-tokens", 20, "--json")
    text = full.json["completions"][0]["text"]
    stop = text[3:5]
    cut = optc("run", bundle, "--prompt", "hello", "--stop", stop, "--json")
    assert cut.json["completions"][0]["text"] == text[: text.index(stop)]
    assert cut.json["completions"][0]["finish"] == "stop"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--prompt", "x" * 41], 3, "the prompt has 41 tokens, the engine's cache holds 40; give"),
        (["--prompt", "xyz", "--max-tokens", "39"], 3, "ask for at most 38 new tokens"),
        (["--prompt", "x", "--top-p", "0.5"], 2, "temperature 0 takes the likeliest"),
        (["--prompt", "x", "--top-k", "5"], 2, "temperature 0 takes the likeliest"),
        (["--prompt", "x", "--chat"], 3, "no chat template"),
        (["--prompt", ""], 2, "the prompt has no tokens"),
        (["--prompt", "x", "--prompt", ""], 2, "prompt 2 has no tokens"),
        (["--prompt", "x\udcff"], 2, "the prompt is not UTF-8"),
        (["--prompt", "x", "--stop", "\udcff"], 2, "the stop string is not UTF-8"),
        (["--prompt", "x", "--temperature", "-1"], 2, "temperature"),
        (["--prompt", "x", "--top-p", "2"], 2, "top-p"),
        (["--prompt", "x", "--max-tokens", "0"], 2, "'--max-tokens': 0 is not in the range x>=1"),
        (["--prompt", "x", "--stop", ""], 2, "a stop string is empty"),
        (["--prompt", "x", "--stream", "--json"], 2, "--stream shows one prompt as text"),
    ],
)
def test_run_refuses_in_one_sentence(
    words: list[str], code: int, sentence: str, bundle: Path, optc: Optc
) -> None:
    outcome = optc("run", bundle, *words)
    assert outcome.code == code
    assert sentence in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert outcome.out == ""


def test_a_text_that_fills_the_cache_says_so_and_the_others_go_on(bundle: Path, optc: Optc) -> None:
    words = ["run", bundle, "--prompt", "x" * 35, "--prompt", "hello", "--json"]
    outcome = optc(*words)
    long, short = outcome.json["completions"]
    assert (len(long["tokens"]), long["finish"]) == (6, "cache full")
    assert (len(short["tokens"]), short["finish"]) == (36, "cache full")
    assert outcome.err.splitlines()[:2] == [
        "prompt 1: cache full after 6 new tokens",
        "prompt 2: cache full after 36 new tokens",
    ]


def test_a_growing_cache_ends_where_the_configuration_says(here: Path, optc: Optc) -> None:
    (here / "tiny" / "config.json").write_text('{"max_position_embeddings": 20}')
    assert optc("build", "tiny/model.onnx", "--passes", "flash,kv").code == 0
    outcome = optc("run", "tiny.optc", "--prompt", "hello", "--max-tokens", "100000")
    assert outcome.code == 3
    assert "need 100004 places, config.json's max_position_embeddings = 20; ask" in outcome.err
    outcome = optc("run", "tiny.optc", "--prompt", "hello")
    assert outcome.code == 0
    assert outcome.err.splitlines()[0] == "context full after 16 new tokens"
    outcome = optc("bench", "tiny.optc", "--prompt-lengths", "10,20")
    assert outcome.code == 3
    problem = "tiny.optc: 35 tokens do not fit: config.json's max_position_embeddings = 20; give"
    assert f"{problem} smaller numbers to --prompt-lengths or --new-tokens" in outcome.err


def test_a_bundle_without_tokenizer_says_what_to_do(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optc: Optc
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(tiny_source / name, tmp_path)
    assert optc("build", "model.onnx", "--passes", "flash,kv", "-o", "bare.optc").code == 0
    outcome = optc("run", "bare.optc", "--prompt", "x")
    assert outcome.code == 3
    assert "put the model's tokenizer.json beside its .onnx file" in outcome.err


def test_bench_takes_turns_and_compares_with_the_first(bundle: Path, optc: Optc) -> None:
    shutil.copytree(bundle, "other.optc")
    words = ["--against", "other.optc", "--prompt-lengths", "4,8", "--batch", "1,2"]
    outcome = optc("bench", bundle, *words, "--new-tokens", 4, "--repeats", 2, "--json")
    assert outcome.code == 0, outcome.err
    rows = outcome.json["timings"]
    assert [(r["batch"], r["prompt_tokens"], r["bundle"]) for r in rows] == [
        (batch, length, name)
        for batch in (1, 2)
        for length in (4, 8)
        for name in ("tiny.optc", "other.optc")
    ]
    for base, other in zip(rows[::2], rows[1::2], strict=True):
        assert base["seconds_ratio"] == base["tokens_ratio"] == 1
        assert other["seconds_ratio"] == pytest.approx(base["seconds"] / other["seconds"])
    table = optc("bench", bundle, "--prompt-lengths", "4", "--repeats", 1).out
    assert "first token ms" in table


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--prompt-lengths", "40"], 3), (["--repeats", "0"], 2), (["--against", "tiny.optc"], 2)],
)
def test_bench_refuses_what_cannot_be_timed(
    words: list[str], code: int, bundle: Path, optc: Optc
) -> None:
    outcome = optc("bench", bundle, *words)
    assert outcome.code == code
    assert outcome.err.splitlines()[-1].startswith("error: ")


def test_inspect_a_model(here: Path, optc: Optc) -> None:
    document = optc("inspect", "tiny/model.onnx", "--json").json
    assert (document["schema"], document["kind"]) == ("optc.inspect/1", "model")
    assert document["opsets"] == {"ai.onnx": 23}
    assert document["operators"]["MatMul"] == 4
    assert document["parameters"] == 257 * 16 * 2 + 64 * 16 + 3 * 16 * 16
    assert document["parameter_bytes"] == {"float32": document["parameters"] * 4}
    assert [site["kind"] for site in document["attention"]] == ["standard"]
    assert document["attention"][0]["fuses"] is None
    assert document["inputs"] == [{"name": "input_ids", "dtype": "int64", "shape": ["B", "S"]}]


def test_inspect_explains_whether_attention_fuses(here: Path, optc: Optc) -> None:
    document = optc("inspect", "tiny/model.onnx", "--explain-attention", "--json").json
    assert document["attention"][0]["fuses"] is True
    assert "causal" in document["attention"][0]["detail"]
    assert "yes" in optc("inspect", "tiny/model.onnx", "--explain-attention").out


def test_inspect_a_bundle(bundle: Path, optc: Optc) -> None:
    document = optc("inspect", bundle, "--json").json
    assert (document["schema"], document["kind"]) == ("optc.inspect/1", "bundle")
    assert document["order"] == ["flash", "kv:max=40"]
    assert document["evidence"]["level"] == "run"
    assert document["options"]["kv"]["max"] == 40
    text = optc("inspect", bundle).out
    fields = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert fields["passes"] == "flash, kv:max=40 (asked for: kv:max=40,flash)"
    assert fields["evidence"] == "against the input graph, engine run; within its policy"


def test_inspect_the_engine_in_a_bundle(bundle: Path, optc: Optc) -> None:
    document = optc("inspect", bundle / "engine.onnx", "--json").json
    assert document["cache"] == "1 layers, 40 tokens"
    assert document["attention"][0]["kind"] == "GroupQueryAttention"


def test_passes_are_described_from_their_classes(optc: Optc) -> None:
    document = optc("passes", "--json").json
    by_name = {row["name"]: row for row in document["passes"]}
    assert by_name["flash"]["promise"] == "exact"
    assert by_name["kv"]["after"] == ["prune", "flash"]
    assert by_name["spec"]["available"] is False
    (option,) = [o for o in by_name["kv"]["options"] if o["name"] == "max"]
    assert (option["minimum"], option["type"]) == (1, "int or auto")
    text = optc("passes", "kv").out
    assert option["help"] in text
    assert "promise: exact; runs after: prune, flash" in text


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("kv", "flash,kv:layout=concat"),
        ("quant", "quant:scheme=int8-dynamic"),
        ("flash", "flash:partial=true"),
    ],
)
def test_the_example_of_a_pass_is_valid_and_changes_something(
    name: str, example: str, optc: Optc
) -> None:
    assert optc("passes", name).out.splitlines()[-1] == f"for example: --passes {example}"
    last = Pipeline.parse(example, registries.passes()).passes[-1]
    assert last.name == name
    assert last != registries.passes().load(name)()


def test_an_installed_extension_is_listed_with_its_owner(
    optc: Optc, planted: Callable[[float], None]
) -> None:
    planted(0.5)
    by_name = {row["name"]: row for row in optc("passes", "--json").json["passes"]}
    assert by_name["shift"]["owner"].startswith("planted")
    assert "from the package planted" in optc("passes", "shift").out


@pytest.mark.parametrize(("name", "code"), [("flsh", 2), ("spec", 3)])
def test_a_pass_that_is_not_there_says_so(name: str, code: int, optc: Optc) -> None:
    assert optc("passes", name).code == code


def test_targets_say_what_is_available_and_why_not(optc: Optc) -> None:
    rows = {row["name"]: row for row in optc("targets", "--json").json["targets"]}
    assert rows["ort"]["available"] is True
    assert rows["tensorrt"]["available"] is False
    assert rows["tensorrt"]["reason"]
    assert "ort" in optc("targets").out


TWO_SITES = """<ir_version: 10, opset_import: ["": 18]>
agraph (float[b,4,s,8] q, float[b,4,8,s] k, float[b,4,s,8] v) => (float[b,4,s,8] z) {
    raw = MatMul(q, k)
    bent = Sigmoid(raw)
    p = Softmax(bent)
    y = MatMul(p, v)
    raw2 = MatMul(y, k)
    p2 = Softmax(raw2)
    z = MatMul(p2, v)
}"""
REASON = "'Sigmoid' between the score product and the Softmax"


@pytest.fixture
def half_fused(here: Path) -> str:
    onnx.save(onnx.parser.parse_model(TWO_SITES), "half.onnx")
    return "half.onnx"


def test_inspect_shows_the_part_that_is_not_understood(half_fused: str, optc: Optc) -> None:
    out = optc("inspect", half_fused, "--explain-attention").out
    assert f"p: {REASON}" in out
    assert "  bent [b,4,s,s] = Sigmoid(raw [b,4,s,s])" in out
    assert "> p [b,4,s,s] = Softmax(bent [b,4,s,s])" in out
    sites = optc("inspect", half_fused, "--explain-attention", "--json").json["attention"]
    assert [(site["name"], site["fuses"]) for site in sites] == [("p", False), ("z", True)]
    assert sites[0]["subgraph"]
    assert not sites[1]["subgraph"]


def test_a_build_that_fuses_only_some_fails_and_lists_the_others(
    half_fused: str, optc: Optc
) -> None:
    outcome = optc("build", half_fused, "--passes", "flash", "--json")
    assert outcome.code == 3
    assert outcome.json["refusals"] == [{"site": "p", "reason": REASON}]
    accepted = optc("build", half_fused, "--passes", "flash:partial=true", "--json")
    assert accepted.code == 0
    (row,) = [row for row in accepted.json["rows"] if row["pass"] == "flash"]
    assert row["refusals"] == [{"site": "p", "reason": REASON}]
