"""How long a sequence may be, who says so, and what happens to rows that come to that end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optc.core.errors import UnsupportedError
from optc.core.session import Session
from optc.runtime.batching import Batcher
from optc.runtime.generate import generate
from optc.runtime.limits import Limit, configured_limit, smallest_limit
from optc.runtime.request import Request
from optc.runtime.row import Finish

ENCODER_DECODER = {"is_encoder_decoder": True}


@pytest.mark.parametrize(
    ("config", "tokens", "source"),
    [
        ({"max_position_embeddings": 2048}, 2048, "config.json's max_position_embeddings ="),
        ({"n_positions": 1024, "n_ctx": 512}, 1024, "config.json's n_positions ="),
        ({"n_ctx": 512}, 512, "config.json's n_ctx ="),
        ({"max_seq_len": 99}, 99, "config.json's max_seq_len ="),
        (
            {"text_config": {"max_position_embeddings": 8192}},
            8192,
            "config.json's text_config.max_position_embeddings =",
        ),
        (
            {**ENCODER_DECODER, "decoder": {"n_positions": 512}, "encoder": {"n_ctx": 3}},
            512,
            "config.json's decoder.n_positions =",
        ),
        (
            {**ENCODER_DECODER, "text_config": {"max_target_positions": 77, "n_positions": 9}},
            77,
            "config.json's text_config.max_target_positions =",
        ),
        ({**ENCODER_DECODER, "max_target_positions": 448}, 448, "config.json's max_target_"),
        ({**ENCODER_DECODER, "max_position_embeddings": 64}, 64, "config.json's max_position_"),
    ],
)
def test_the_configuration_says_how_long_a_sequence_may_be(
    config: dict[str, object], tokens: int, source: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 7}))
    found = configured_limit(tmp_path)
    assert found is not None
    assert found.tokens == tokens
    assert found.says.startswith(source)


def test_without_a_configuration_the_tokenizer_says_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 700}))
    assert str(configured_limit(tmp_path)) == "tokenizer_config.json's model_max_length = 700"


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": None},
        {"max_position_embeddings": "many"},
        {"max_position_embeddings": True},
        {"max_position_embeddings": -1},
        {"decoder": {**ENCODER_DECODER, "n_positions": 512}},
        {**ENCODER_DECODER, "n_positions": 512},  # of T5, whose positions are relative
    ],
)
def test_what_says_nothing_is_no_limit(config: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    assert configured_limit(tmp_path) is None
    assert configured_limit(None) is None


TRAINED = Limit(30, "config.json's max_position_embeddings =", Finish.CONTEXT)


def test_a_growing_cache_ends_where_the_model_was_trained_to(growing: Session) -> None:
    assert generate(growing, [[5] * 9], max_new_tokens=22, limit=TRAINED).finish == ("length",)
    sentence = (
        "prompt and new tokens need 31 places, config.json's max_position_embeddings = 30; "
        "ask for at most 22 new tokens, or give a shorter prompt"
    )
    with pytest.raises(UnsupportedError) as caught:
        generate(growing, [[5] * 9], max_new_tokens=23, limit=TRAINED)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("kind", "tokens"), [("growing", 30), ("static", 24)])
def test_the_smaller_limit_counts(kind: str, tokens: int, request: pytest.FixtureRequest) -> None:
    found = smallest_limit(request.getfixturevalue(kind), TRAINED)
    assert found is not None
    assert found.tokens == tokens


def test_where_only_the_prompt_is_too_long_nobody_is_told_to_ask_for_less(static: Session) -> None:
    with pytest.raises(UnsupportedError) as caught:
        generate(static, [[1], [5] * 25], max_new_tokens=1)
    sentence = "prompt 2 has 25 tokens, the engine's cache holds 24; give a shorter one"
    assert str(caught.value) == sentence


def test_a_row_may_go_on_until_its_own_room_is_full(static: Session, plain: Session) -> None:
    long, short = [5] * 20, [17, 3]
    found = generate(static, [long, short], max_new_tokens=15, shorten=True)
    assert [len(tokens) for tokens in found.tokens] == [5, 15]
    assert found.finish == ("cache full", "length")
    alone = [generate(plain, [row], max_new_tokens=15).tokens[0] for row in (long, short)]
    assert found.tokens == (alone[0][:5], alone[1])


def test_what_ends_a_row_is_named(growing: Session) -> None:
    found = generate(growing, [[5] * 20], max_new_tokens=99, limit=TRAINED, shorten=True)
    assert len(found.tokens[0]) == 11
    assert found.finish == ("context full",)


def test_a_batcher_keeps_to_it_too(growing: Session) -> None:
    batcher = Batcher(growing, slots=2, limit=TRAINED)
    with pytest.raises(UnsupportedError, match=r"need 31 places, config.json's .* = 30"):
        batcher.submit(Request((5,) * 9, 23))
    with pytest.raises(UnsupportedError, match=r"config.json's .* = 30, not rows of 31"):
        Batcher(growing, slots=2, max_tokens=31, limit=TRAINED)
