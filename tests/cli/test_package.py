"""`optc package`: what it writes, and what it says no to. The runtimes are in `tests/ecosystem`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from optc.api.package_facts import context_of, why_not
from optc.core.errors import UsageError
from optc.core.session import Port

Optc = Callable[..., Any]
CONFIG = {"max_position_embeddings": 48, "model_type": "strange", "num_attention_heads": 7}


@pytest.fixture
def bundle(here: Path, optc: Optc) -> Path:
    """`tiny.optc`, one layer with 2 heads of 8, from a source that says how long it reads."""
    (here / "tiny" / "config.json").write_text(json.dumps(CONFIG))
    assert optc("build", "tiny/model.onnx", "--passes", "kv,flash").code == 0
    return here / "tiny.optc"


def written(here: Path, optc: Optc, runtime: str, *more: str) -> Path:
    outcome = optc("package", "tiny.optc", "--for", runtime, "-o", runtime, *more)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"wrote {runtime} (")
    return here / runtime


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_optimum_is_told_the_sizes_of_the_cache_whatever_the_model_is(
    bundle: Path, here: Path, optc: Optc
) -> None:
    folder = written(here, optc, "optimum")
    config = read(folder / "config.json")
    assert config["model_type"] == "llama"
    assert config["hidden_size"] // config["num_attention_heads"] == 8
    assert config["num_key_value_heads"] == 2
    assert config["max_position_embeddings"] == 48
    assert read(folder / "source_config.json") == CONFIG
    assert read(folder / "generation_config.json") == {"pad_token_id": 0}


def test_optimum_gets_a_tokenizer_that_transformers_4_reads(
    bundle: Path, here: Path, optc: Optc
) -> None:
    settings = read(written(here, optc, "optimum") / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["padding_side"] == "left"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]


def test_genai_is_told_names_and_sizes(bundle: Path, here: Path, optc: Optc) -> None:
    folder = written(here, optc, "genai", "--context", "32")
    config = read(folder / "genai_config.json")
    decoder = config["model"]["decoder"]
    sizes = ("num_hidden_layers", "num_key_value_heads", "head_size", "num_attention_heads")
    assert [decoder[name] for name in sizes] == [1, 2, 8, 7]
    assert config["model"]["vocab_size"] == 257
    assert config["model"]["context_length"] == config["search"]["max_length"] == 32
    graph = ir.load(folder / decoder["filename"]).graph
    names = {value.name for value in [*graph.inputs, *graph.outputs]}
    told = {**decoder["inputs"], **decoder["outputs"]}.values()
    assert {name.replace("%d", "0") for name in told} == names
    assert not (folder / "config.json").exists()


def test_ids_of_special_tokens_come_from_the_source(here: Path, optc: Optc) -> None:
    ids = {"eos_token_id": [256, 3], "bos_token_id": 5, "pad_token_id": 9}
    (here / "tiny" / "generation_config.json").write_text(json.dumps({**ids, "top_k": 4}))
    assert optc("build", "tiny/model.onnx", "--passes", "kv,flash").code == 0
    model = read(written(here, optc, "genai", "--context", "9") / "genai_config.json")["model"]
    assert {name: model[name] for name in ids} == {**ids, "eos_token_id": [3, 256]}
    generation = read(written(here, optc, "optimum", "--context", "9") / "generation_config.json")
    assert generation == {**ids, "eos_token_id": [3, 256], "top_k": 4}


def test_the_bundle_stays_as_it_was(bundle: Path, here: Path, optc: Optc) -> None:
    written(here, optc, "optimum")
    assert optc("verify", "tiny.optc").code == 0
    assert not list(here.glob(".*"))


def test_it_says_no_in_one_sentence_and_leaves_nothing(
    bundle: Path, here: Path, optc: Optc
) -> None:
    assert optc("build", "tiny/model.onnx", "--passes", "flash", "-o", "plain.optc").code == 0
    assert optc("build", "tiny/model.onnx", "--passes", "flash,kv:max=16", "-o", "s.optc").code == 0
    (here / "taken").mkdir()
    cases = {
        ("tiny.optc", "onnx", "new"): (2, "--for: there is no ecosystem 'onnx'; genai or optimum"),
        ("no.optc", "genai", "new"): (2, "no.optc: no such bundle"),
        ("tiny.optc", "genai", "taken"): (2, "taken: it is there already; give the name of a new"),
        ("plain.optc", "genai", "new"): (
            3,
            "plain.optc: it is not a generator with a cache; build",
        ),
        ("s.optc", "optimum", "new"): (3, "its cache always holds 16 tokens, and optimum begins"),
        ("s.optc", "genai", "new", "--context=17"): (
            2,
            "--context: a sequence of 17 tokens does not fit, the cache holds 16; give at most 16",
        ),
        ("tiny.optc", "genai", "new", "--context=49"): (
            2,
            "a sequence of 49 tokens does not fit, config.json's max_position_embeddings = 48",
        ),
        ("s.optc", "genai", "new", "--context=0"): (
            2,
            "--context: a sequence of 0 tokens is none; give",
        ),
    }
    for (name, runtime, out, *more), (code, sentence) in cases.items():
        outcome = optc("package", name, "--for", runtime, "-o", out, *more)
        assert outcome.code == code, outcome.err
        assert sentence in outcome.err
        assert outcome.err.count("error:") == 1
    assert not (here / "new").exists()
    assert not list((here / "taken").iterdir())
    assert not list(here.glob(".*"))


def test_a_bundle_that_does_not_say_how_long_it_reads_needs_to_be_told() -> None:
    sentence = (
        "mine.optc: it does not say how long a sequence may be; say so with --context, or export "
        "and build again: config.json then comes along"
    )
    with pytest.raises(UsageError) as caught:
        context_of(None, [], "mine.optc")
    assert str(caught.value) == sentence
    assert context_of(7, [], "mine.optc") == 7


@pytest.mark.parametrize("runtime", ["genai", "optimum"])
def test_a_configuration_counts_without_a_tokenizer_too(
    runtime: str, bundle: Path, here: Path, optc: Optc
) -> None:
    (here / "tiny" / "tokenizer.json").unlink()
    command = ["build", "tiny/model.onnx", "--passes", "kv,flash", "-o", "bare.optc"]
    assert optc(*command).code == 0
    outcome = optc("package", "bare.optc", "--for", runtime, "-o", "new", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["context"] == 48
    assert not list((here / "new").glob("tokenizer*"))


def test_a_table_of_positions_is_a_limit_as_well(here: Path, optc: Optc) -> None:
    (here / "tiny" / "config.json").write_text(json.dumps({"max_position_embeddings": 100}))
    assert optc("build", "tiny/model.onnx", "--passes", "kv,flash").code == 0
    outcome = optc("package", "tiny.optc", "--for", "genai", "-o", "new", "--json")
    assert outcome.json["context"] == 64
    outcome = optc("package", "tiny.optc", "--for", "genai", "-o", "more", "--context=65")
    assert "does not fit, the model has positions for 64; give at most 64" in outcome.err


TOKENS = Port("input_ids", "int64", ("B", "S"))
LENGTHS = Port("cache_lengths", "int64", ("B",))


def caches(layer: int, heads: int = 2, dim: int = 8, dtype: str = "float32") -> list[Port]:
    name, shape = f"past_key_values.{layer}", ("B", heads, "T", dim)
    return [Port(f"{name}.key", dtype, shape), Port(f"{name}.value", dtype, shape)]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([TOKENS], "it is not a generator with a cache"),
        (
            [Port("decoder_input_ids", "int64", ("B", "S")), LENGTHS, *caches(0)],
            "it is an encoder-decoder, and only decoders are packaged",
        ),
        (
            [TOKENS, LENGTHS, Port("pixels", "float32", ("B", 3)), *caches(0)],
            "it has inputs that these runtimes do not give: pixels",
        ),
        (
            [TOKENS, LENGTHS, *caches(0), *caches(1, heads=4)],
            "its layers, or keys and values, differ in the shape of their caches",
        ),
        (
            [TOKENS, LENGTHS, caches(0)[0], caches(0, dim=16)[1]],
            "its layers, or keys and values, differ in the shape of their caches",
        ),
        ([TOKENS, LENGTHS, *caches(0, dtype="int8")], "its cache holds int8"),
    ],
)
def test_an_engine_that_the_runtimes_cannot_feed_is_refused_with_the_reason(
    inputs: list[Port], reason: str
) -> None:
    found = why_not(inputs)
    assert found is not None
    assert found[0] == reason


def test_any_number_of_layers_of_one_shape_will_do() -> None:
    last_only = Port("new_lengths", "int64", ("B",))
    assert why_not([TOKENS, LENGTHS, last_only, *caches(0), *caches(1)]) is None
