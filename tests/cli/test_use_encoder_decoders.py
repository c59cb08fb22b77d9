"""`optc run` and `optc bench` on encoder-decoders, beside what Transformers generates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("transformers")

import tiny_seq2seq
from tiny_seq2seq import FORCED, KINDS, TinySeq2Seq

import optc as library
from optc.api.prompts import Beginning
from optc.cli.main import cli
from optc.core.errors import UnsupportedError
from optc.runtime.tokenizer import load_tokenizer

Optc = Callable[..., Any]
PASSES = {"growing": "flash,kv", "fixed": "flash,kv:max=32", "last": "flash,kv:logits=last"}
TEXTS = ["HI", "A longer text.", "Bye"]
COUNT = 20


class Shelf:
    """Models and bundles, each made on first use."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._models: dict[str, TinySeq2Seq] = {}
        self._bundles: dict[tuple[str, str], Path] = {}

    def model(self, kind: str) -> TinySeq2Seq:
        if kind not in self._models:
            folder = self._folder / kind
            folder.mkdir()
            self._models[kind] = tiny_seq2seq.make(kind, folder)
        return self._models[kind]

    def bundle(self, kind: str, passes: str = PASSES["growing"]) -> Path:
        key = kind, passes
        if key not in self._bundles:
            path = self._folder / f"{kind}{len(self._bundles)}.optc"
            self._bundles[key] = build(self.model(kind).folder, path, passes)
        return self._bundles[key]


def build(source: Path, out: Path, passes: str = PASSES["growing"]) -> Path:
    words = ["build", str(source / "model.onnx"), "--passes", passes, "-o", str(out)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def words(tiny: TinySeq2Seq, texts: list[str]) -> dict[str, np.ndarray]:
    """Texts as Transformers takes them."""
    rows = [load_tokenizer(tiny.folder).encode(text) for text in texts]
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


def said(outcome: Any) -> list[list[int]]:
    assert outcome.code == 0, outcome.err
    return [row["tokens"] for row in outcome.json["completions"]]


@pytest.mark.parametrize("passes", [*PASSES.values(), "flash"], ids=[*PASSES, "no cache"])
def test_t5_says_what_it_says_in_transformers(passes: str, shelf: Shelf, optc: Optc) -> None:
    """Texts of different lengths in one batch; the first ends itself, by `config.json`."""
    tiny = shelf.model("t5")
    expected = tiny.greedy(COUNT, **words(tiny, TEXTS))
    prompts = [word for text in TEXTS for word in ("--prompt", text)]
    command = ["run", shelf.bundle("t5", passes), "--max-tokens", COUNT, "--json"]
    together = optc(*command, *prompts)
    assert said(together) == expected
    assert [said(optc(*command, "--prompt", text))[0] for text in TEXTS] == expected
    finish = [row["finish"] for row in together.json["completions"]]
    assert finish[0] == "eos"
    assert finish[1:] == ["length" if len(row) == COUNT else "eos" for row in expected[1:]]
    assert len(set(map(tuple, expected))) == 3


def test_bart_goes_on_after_the_token_that_is_forced(shelf: Shelf, optc: Optc) -> None:
    tiny = shelf.model("bart")
    for text in TEXTS:
        feeds = words(tiny, [text])
        (expected,) = tiny.greedy(COUNT, **feeds)
        assert expected[0] == FORCED
        command = ["run", shelf.bundle("bart"), "--prompt", text, "--max-tokens", COUNT - 1]
        assert said(optc(*command, "--json")) == [expected[1:]]
        free = tiny.greedy(COUNT, start=[2, 50], **feeds)
        command = ["run", shelf.bundle("bart"), "--prompt", text, "--max-tokens", COUNT]
        assert said(optc(*command, "--decoder-start-token", "2,50", "--json")) == free


def test_whisper_hears_what_a_file_holds(
    shelf: Shelf, optc: Optc, rng: np.random.Generator, here: Path
) -> None:
    tiny = shelf.model("whisper")
    features = rng.standard_normal((2, 8, 32)).astype(np.float32)
    np.savez("heard.npz", input_features=features)
    command = ["run", shelf.bundle("whisper"), "--inputs", "heard.npz", "--max-tokens", COUNT]
    outcome = optc(*command, "--json")
    assert said(outcome) == tiny.greedy(COUNT, input_features=features)
    assert [row["prompt"] for row in outcome.json["completions"]] == [None, None]
    start = [2, 40, 41]
    outcome = optc(*command, "--decoder-start-token", "2,40,41", "--json")
    assert said(outcome) == tiny.greedy(COUNT, start=start, input_features=features)
    shown = optc(*command).out.splitlines()
    assert shown[0] == "--- 1"
    assert "--- 2" in shown


def test_text_comes_as_it_is_made_with_speed_and_memory_after_it(shelf: Shelf, optc: Optc) -> None:
    command = ["run", shelf.bundle("t5"), "--prompt", TEXTS[1], "--max-tokens", 12]
    plain, streamed = optc(*command), optc(*command, "--stream")
    assert plain.code == 0, plain.err
    assert plain.out == streamed.out
    assert f"{len(TEXTS[1]) + 1} + 12 tokens, first after" in plain.err
    assert "tokens/s, peak memory" in plain.err


def test_from_python_with_texts_or_with_arrays(shelf: Shelf) -> None:
    tiny = shelf.model("t5")
    feeds = words(tiny, TEXTS)
    by_text = library.run(shelf.bundle("t5"), TEXTS, max_tokens=COUNT)
    by_name = library.run(shelf.bundle("t5"), inputs=feeds, max_tokens=COUNT)
    assert by_text.completion.tokens == by_name.completion.tokens
    assert by_text.completion.stats.prompt_tokens == feeds["attention_mask"].sum()


def test_a_decoder_without_a_start_says_how_to_give_it_one(
    shelf: Shelf, here: Path, optc: Optc
) -> None:
    tiny = shelf.model("t5")
    shutil.copytree(tiny.folder, "unsaid")
    config = json.loads(Path("unsaid/config.json").read_text())
    del config["decoder_start_token_id"]
    Path("unsaid/config.json").write_text(json.dumps(config))
    bundle = build(Path("unsaid"), here / "unsaid.optc")
    command = ["run", bundle, "--prompt", TEXTS[1], "--max-tokens", COUNT]
    outcome = optc(*command)
    assert outcome.code == 3
    assert "names no decoder_start_token_id" in outcome.err
    assert "--decoder-start-token" in outcome.err
    given = optc(*command, "--decoder-start-token", 0, "--json")
    assert said(given) == tiny.greedy(COUNT, **words(tiny, TEXTS[1:2]))


@pytest.mark.parametrize(
    ("kind", "given", "code", "sentence"),
    [
        ("bart", ["--prompt", "a", "--prompt", "bcd"], 3, "different lengths (2, 4 tokens)"),
        ("bart", ["--prompt", "x" * 64], 3, "the prompt has 65 tokens, the encoder has positions"),
        ("bart", ["--prompt", "\udcff"], 2, "the prompt is not UTF-8"),
        ("bart", ["--prompt", "a", "--max-tokens", 64], 3, "the model has positions for 64"),
        (
            "bart",
            ["--prompt", "a", "--decoder-start-token", 2, "--max-tokens", 65],
            3,
            "ask for at most 64 new tokens\n",
        ),
        (
            "bart",
            ["--prompt", "a", "--decoder-start-token", ",".join("2" * 65)],
            3,
            "the decoder's start has 65 tokens, the model has positions for 64; give a shorter one",
        ),
        (
            "bart",
            ["--prompt", "a", "--decoder-start-token", "2,0", "--max-tokens", 64],
            3,
            "start and new tokens need 65 places, the model has positions for 64; "
            "ask for at most 63 new tokens, or give a shorter start",
        ),
        ("bart", [], 2, "there is no prompt; give one with --prompt"),
        ("t5", ["--prompt", "a", "--decoder-start-token", 96], 2, "there is no token 96"),
        ("t5", ["--prompt", "a", "--decoder-start-token", "x"], 2, "not a list of whole numbers"),
        ("t5", ["--prompt", "a", "--inputs", "good.npz"], 2, "prompts or inputs of the encoder"),
        ("whisper", ["--prompt", "a"], 3, "no text but input_features float32 ["),
        ("whisper", [], 3, "give these arrays with --inputs"),
        ("whisper", ["--inputs", "none.npz"], 2, "none.npz: no such file"),
        ("whisper", ["--inputs", "text.npz"], 2, "text.npz: not an .npz file of arrays; write it"),
        ("whisper", ["--inputs", "one.npy"], 2, "it holds one array without a name; write it with"),
        ("whisper", ["--inputs", "objects.npz"], 2, "objects.npz: 'a' is no array of numbers"),
        ("whisper", ["--inputs", "cut.npz"], 2, "cut.npz: not an .npz file"),
        ("whisper", ["--inputs", "."], 2, ".: is a folder, not a file"),
        ("whisper", ["--inputs", "empty.npz"], 2, "input_features float32 ["),
        ("whisper", ["--inputs", "other.npz"], 2, "takes no 'features', but input_features"),
        ("whisper", ["--inputs", "double.npz"], 2, "is float64, the graph takes float32"),
        ("whisper", ["--inputs", "good.npz", "--stream"], 2, "--stream shows one prompt"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    kind: str, given: list[Any], code: int, sentence: str, shelf: Shelf, here: Path, optc: Optc
) -> None:
    features = np.zeros((2, 8, 32), np.float32)
    Path("text.npz").write_text("hello")
    np.savez("empty.npz")
    np.savez("other.npz", features=features)
    np.savez("double.npz", input_features=features.astype(np.float64))
    np.savez("good.npz", input_features=features)
    np.save("one.npy", features)
    np.savez("objects.npz", a=np.array([[1], [2, 3]], object))
    Path("cut.npz").write_bytes(Path("good.npz").read_bytes()[:200])
    outcome = optc("run", shelf.bundle(kind), *given)
    assert outcome.code == code, outcome.err
    assert sentence in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert outcome.out == ""


def test_a_long_prompt_is_not_blamed_for_what_has_another_reason(shelf: Shelf, optc: Optc) -> None:
    outcome = optc("run", shelf.bundle("bart"), "--prompt", "x" * 63, "--max-tokens", 500)
    assert outcome.code == 3
    assert "start and new tokens need 501 places" in outcome.err
    assert "a prompt has" not in outcome.err


def test_where_a_long_prompt_is_blamed_nothing_is_lost() -> None:
    start = Beginning(("x",), ((2,),), {}, 70, "a prompt has 70 tokens, config.json allows 64")
    failed = UnsupportedError("no row 64", where="node 'positions'", remedy="export a longer table")
    with pytest.raises(UnsupportedError) as caught, start.explained():
        raise failed
    assert str(caught.value) == (
        "node 'positions': a prompt has 70 tokens, config.json allows 64 (no row 64); "
        "give a shorter prompt, or export a longer table"
    )


IDS = np.array([[5, 6, 7], [8, 9, 10]])


@pytest.mark.parametrize(
    ("ids", "mask", "code", "sentence"),
    [
        (-IDS, IDS > 0, 2, "prompt 1 has token -7, the encoder has 0 to 95"),
        (IDS + 86, IDS > 0, 2, "prompt 2 has token 96, the encoder has 0 to 95"),
        (IDS, IDS[:, :2] > 0, 2, "'input_ids' is [2, 3], 'attention_mask' is [2, 2]"),
        (IDS[:, :0], IDS[:, :0] > 0, 2, "the input 'input_ids' is empty, its shape is [2, 0]"),
        (IDS, IDS > 7, 2, "row 1 of 'attention_mask' hides every token"),
        (IDS[:1], IDS > 7, 2, "inputs have one number of rows"),
    ],
)
def test_arrays_that_no_encoder_reads_are_refused_before_it_is_run(
    ids: np.ndarray,
    mask: np.ndarray,
    code: int,
    sentence: str,
    shelf: Shelf,
    here: Path,
    optc: Optc,
) -> None:
    np.savez("given.npz", input_ids=ids, attention_mask=mask.astype(np.int64))
    outcome = optc("run", shelf.bundle("t5"), "--inputs", "given.npz")
    assert outcome.code == code, outcome.err
    assert sentence in outcome.err
    assert "onnxruntime" not in outcome.err


def test_a_text_longer_than_the_encoders_table_is_named_before_it_is_run(
    shelf: Shelf, here: Path, optc: Optc
) -> None:
    bundle = shelf.bundle("bart")
    assert optc("run", bundle, "--prompt", "x" * 63, "--max-tokens", 1).code == 0
    outcome = optc("run", bundle, "--prompt", "x" * 63, "--prompt", "x" * 70)
    assert outcome.code == 3
    assert "prompt 2 has 71 tokens, the encoder has positions for 64; give a" in outcome.err
    outcome = optc("bench", bundle, "--prompt-lengths", "8,65", "--repeats", 1)
    assert outcome.code == 3
    problem = "65 tokens do not fit: the encoder has positions for 64; give smaller numbers to"
    assert f"{problem} --prompt-lengths" in outcome.err


def test_a_full_decoder_is_not_blamed_on_the_prompt(shelf: Shelf, optc: Optc) -> None:
    bundle = shelf.bundle("t5", PASSES["fixed"])
    outcome = optc("run", bundle, "--prompt", "a", "--max-tokens", 40)
    assert outcome.code == 3
    problem = "start and new tokens need 40 places, the engine's cache holds 32"
    assert f"{problem}; ask for at most 32 new tokens\n" in outcome.err
    outcome = optc("bench", bundle, "--prompt-lengths", 8, "--new-tokens", 40, "--repeats", 1)
    assert outcome.code == 3
    assert outcome.err.endswith("give smaller numbers to --new-tokens\n")


def test_a_text_by_itself_is_one_prompt(shelf: Shelf) -> None:
    one = library.run(shelf.bundle("t5"), TEXTS[0], max_tokens=4)
    assert one.prompts == (TEXTS[0],)
    assert (
        one.completion.tokens
        == library.run(shelf.bundle("t5"), TEXTS[:1], max_tokens=4).completion.tokens
    )


@pytest.mark.parametrize("given", [["--inputs", "x.npz"], ["--decoder-start-token", "1"]])
def test_a_decoder_takes_prompts_only(given: list[str], here: Path, optc: Optc) -> None:
    assert optc("build", "tiny/model.onnx", "--passes", "flash,kv", "-o", "tiny.optc").code == 0
    np.savez("x.npz", x=np.zeros(1))
    outcome = optc("run", "tiny.optc", "--prompt", "a", *given)
    assert outcome.code == 2
    assert "this bundle is a decoder" in outcome.err


@pytest.mark.parametrize("kind", KINDS)
def test_bench_times_the_encoder_with_the_first_token_and_the_others_after(
    kind: str, shelf: Shelf, optc: Optc
) -> None:
    command = ["bench", shelf.bundle(kind), "--prompt-lengths", "4,8", "--batch", "1,2"]
    command += ["--new-tokens", 4, "--repeats", 1]
    outcome = optc(*command, "--json")
    assert outcome.code == 0, outcome.err
    lengths = [0] if kind == "whisper" else [4, 8]
    rows = outcome.json["timings"]
    assert [(row["batch"], row["prompt_tokens"]) for row in rows] == [
        (batch, length) for batch in (1, 2) for length in lengths
    ]
    assert all(row["seconds"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    assert "first token ms" in optc(*command).out


def test_bench_does_not_time_speech_beside_text(shelf: Shelf, optc: Optc) -> None:
    outcome = optc("bench", shelf.bundle("t5"), "--against", shelf.bundle("whisper"))
    assert outcome.code == 2
    assert "read text cannot be timed beside others" in outcome.err
