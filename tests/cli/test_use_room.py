"""Room: what a machine has not, what a model never uses, and what has a cache already."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

Optc = Callable[..., Any]
MODEL = "tiny/model.onnx"
MOST = (1 << 31) - 1


@pytest.fixture
def bundle(here: Path, optc: Optc) -> str:
    assert optc("build", MODEL, "--passes", "flash,kv", "-o", "tiny.optc").code == 0
    return "tiny.optc"


def only_error(outcome: Any) -> str:
    (line,) = [row for row in outcome.err.splitlines() if row.startswith("error: ")]
    return str(line)


def test_a_cache_larger_than_the_machine_is_refused_with_both_numbers(
    here: Path, optc: Optc
) -> None:
    outcome = optc("build", MODEL, "--passes", f"flash,kv:max={MOST}", "-o", "big.optc")
    assert outcome.code == 3
    # 2 heads of 8 float32, keys and values; the reference has 3 rows at a time.
    needed = f"{2 * 8 * 4 * 2 * MOST * 3 / 1e9:.0f} GB for 3 rows, before a call and after it"
    assert f"kv:max={MOST} needs {needed}" in only_error(outcome)
    assert only_error(outcome).endswith("GB; choose a smaller max")
    assert "this machine has" in outcome.err
    assert not Path("big.optc").exists()


def test_bench_says_that_a_batch_is_larger_than_the_machine(bundle: str, optc: Optc) -> None:
    outcome = optc("bench", bundle, "--batch", 10**9, "--prompt-lengths", 4, "--new-tokens", 2)
    assert outcome.code == 3
    assert "tiny.optc: 1000000000 prompts at a time need" in only_error(outcome)
    assert only_error(outcome).endswith("give smaller numbers to --batch")


@pytest.mark.parametrize("config", [None, 20])
def test_room_that_the_model_never_uses_is_noted(
    config: int | None, here: Path, optc: Optc
) -> None:
    if config:
        (here / "tiny" / "config.json").write_text(f'{{"max_position_embeddings": {config}}}')
    says = "config.json's max_position_embeddings = 20" if config else "the model has positions for"
    outcome = optc("build", MODEL, "--passes", "flash,kv:max=100")
    assert outcome.code == 0, outcome.err
    assert f"note: kv:max=100 has room that is never used: {says}" in outcome.err
    outcome = optc("build", MODEL, "--passes", f"flash,kv:max={config or 64}", "-o", "fits.optc")
    assert "never used" not in outcome.err


def test_an_engine_is_no_model(bundle: str, optc: Optc) -> None:
    shutil.copytree(bundle, "elsewhere")
    Path("elsewhere/manifest.json").unlink()
    for folder in (bundle, "elsewhere"):
        outcome = optc("build", f"{folder}/engine.onnx", "--passes", "flash,kv", "-o", "again.optc")
        assert outcome.code == 2
        problem = f"{folder}/engine.onnx: it is a built engine, its cache is there already"
        assert only_error(outcome) == f"error: {problem}; give the model that it was built from"


@pytest.mark.parametrize(
    ("passes", "sentence"),
    [
        (
            "kv:max=99999999999",
            "kv:max: runtimes count tokens in 31 bits; the largest is 2147483647",
        ),
        ("kv:256", "kv:layout: '256' is not allowed; did you mean kv:max=256?"),
        ("kv:static7", "kv:layout: 'static7' is not allowed; did you mean 'static'?"),
    ],
)
def test_sizes_of_a_cache(passes: str, sentence: str, here: Path, optc: Optc) -> None:
    outcome = optc("build", MODEL, "--passes", f"flash,{passes}")
    assert outcome.code == 2
    assert sentence in only_error(outcome)


def encoder(outputs: str) -> ir.Model:
    """Attention that is not causal, over embedded words."""
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        encoder (int64[B,S] input_ids, float[16,16] words) => (float[B,S,16] {outputs}) {{
          x = Gather(words, input_ids)
          axis = Constant<value_ints = [1]>()
          h = Unsqueeze(x, axis)
          a = Attention(h, h, h)
          {outputs} = Squeeze(a, axis)
        }}"""
    )
    words = model.graph.inputs.pop(1)
    array = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    words.const_value = ir.tensor(array, name="words")
    model.graph.register_initializer(words)
    return model


def test_an_encoder_gets_no_cache_and_does_not_generate(here: Path, optc: Optc) -> None:
    ir.save(encoder("last_hidden_state"), "tiny/encoder.onnx")
    outcome = optc("build", "tiny/encoder.onnx", "--passes", "flash,kv")
    assert outcome.code == 3
    assert "the graph is an encoder: no attention is causal, so it" in only_error(outcome)
    assert "output_names" not in outcome.err
    assert optc("build", "tiny/encoder.onnx", "--passes", "flash", "-o", "e.optc").code == 0
    outcome = optc("run", "e.optc", "--prompt", "a")
    assert outcome.code == 3
    problem = "it does not generate: the engine has no output 'logits' (it has last_hidden_state)"
    assert problem in only_error(outcome)


def unlimited() -> ir.Model:
    """A decoder without a table of positions."""
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        free (int64[B,S] input_ids, float[257,16] words, float[16,257] head)
            => (float[B,S,257] logits) {
          x = Gather(words, input_ids)
          axis = Constant<value_ints = [1]>()
          h = Unsqueeze(x, axis)
          a = Attention<is_causal = 1>(h, h, h)
          y = Squeeze(a, axis)
          logits = MatMul(y, head)
        }"""
    )
    rng = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        array = rng.normal(size=[int(d) for d in value.shape or ()]).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def test_a_model_without_a_limit_says_so_where_much_is_asked_for(here: Path, optc: Optc) -> None:
    ir.save(unlimited(), "tiny/free.onnx")
    assert optc("build", "tiny/free.onnx", "--passes", "flash,kv", "-o", "free.optc").code == 0
    words = ("run", "free.optc", "--prompt", "a")
    outcome = optc(*words, "--max-tokens", 200)
    assert outcome.code == 0, outcome.err
    said = "no limit of this model's texts is known: up to 200 tokens, unless it ends before"
    assert outcome.err.splitlines()[0] == said
    assert "no limit" not in optc(*words, "--max-tokens", 20).err
    for count in (10**15, 10**18):
        outcome = optc(*words, "--max-tokens", count)
        assert outcome.code == 3
        assert f"a cache of {count} tokens needs" in only_error(outcome)
        assert only_error(outcome).endswith("ask for fewer tokens")


def test_bundles_are_named_as_they_were_typed(bundle: str, optc: Optc) -> None:
    shutil.copytree(bundle, "none.optc")
    Path("none.optc/manifest.json").unlink()
    outcome = optc("run", "none.optc", "--prompt", "a")
    assert outcome.code == 2
    assert only_error(outcome).startswith("error: none.optc: it has no manifest.json, so it is not")
    assert only_error(outcome).endswith("give the folder that 'optc build' wrote")
    Path(bundle, "engine.onnx.data").unlink()
    outcome = optc("run", bundle, "--prompt", "a")
    problem = "tiny.optc: the file 'engine.onnx.data' is missing; copy the bundle again"
    assert only_error(outcome) == f"error: {problem}"


def test_an_archive_that_is_no_reference(here: Path, optc: Optc) -> None:
    np.savez("other.npz", a=np.ones(2))
    outcome = optc("build", MODEL, "--passes", "flash,kv", "--reference", "other.npz")
    assert outcome.code == 2
    problem = "other.npz: not a reference file; make it with 'optc reference'"
    assert only_error(outcome) == f"error: {problem}"


def test_a_context_that_does_not_fit_says_what_does(bundle: str, optc: Optc) -> None:
    outcome = optc("package", bundle, "--for", "genai", "-o", "out", "--context", 100)
    assert outcome.code == 2
    problem = "a sequence of 100 tokens does not fit, the model has positions for 64; give at most"
    assert f"--context: {problem} 64" in only_error(outcome)
