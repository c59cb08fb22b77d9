"""Which tokens a decoder starts with, from the files of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optc.core.errors import InputError, UnsupportedError
from optc.runtime.start import read_start

START, BOS, FORCED = "decoder_start_token_id", "bos_token_id", "forced_bos_token_id"


def write(folder: Path, generation: dict[str, Any] | None, config: dict[str, Any] | None) -> Path:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "tokens"),
    [
        (None, {START: 5}, (5,)),
        ({START: 4}, {START: 5}, (4,)),
        ({START: None}, {START: 0, BOS: 7}, (0,)),
        ({BOS: 6}, {START: 5}, (5,)),
        (None, {BOS: 7}, (7,)),
        ({"eos_token_id": 1}, {"decoder": {BOS: 2}}, (2,)),
        ({FORCED: 9}, {START: 5}, (5, 9)),
        (None, {START: 5, FORCED: None}, (5,)),
        ({START: [3, 4]}, {BOS: 7}, (7,)),
    ],
)
def test_generation_config_counts_for_more_and_the_start_for_more_than_the_beginning(
    generation: dict[str, Any] | None,
    config: dict[str, Any],
    tokens: tuple[int, ...],
    tmp_path: Path,
) -> None:
    assert read_start(write(tmp_path, generation, config)).tokens() == tokens


@pytest.mark.parametrize("config", [None, {}, {START: None}, {START: True}, {START: "2"}])
def test_without_a_start_there_is_a_sentence_and_an_option(
    config: dict[str, Any] | None, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=r"no decoder_start_token_id.*--decoder-start-token"):
        read_start(write(tmp_path, None, config)).tokens()


def test_a_bundle_without_files_has_no_start_and_pads_with_zeros() -> None:
    start = read_start(None)
    assert (start.padding, start.encoder_tokens) == (0, None)
    with pytest.raises(UnsupportedError, match="no decoder_start_token_id"):
        start.tokens()


def test_padding_and_the_encoders_length_are_read_too(tmp_path: Path) -> None:
    config = {"pad_token_id": 3, "max_position_embeddings": 64}
    start = read_start(write(tmp_path, None, config))
    assert (start.padding, start.encoder_tokens) == (3, 64)
    own = config | {"encoder": {"max_position_embeddings": 32}}
    assert read_start(write(tmp_path, None, own)).encoder_tokens == 32


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: not a JSON object"):
        read_start(tmp_path)
