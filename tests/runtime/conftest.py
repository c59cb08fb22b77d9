"""A byte-level tokenizer on disk, and a tiny language model with and without a cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from tiny_generator import tiny_language_model
from tokenizers import decoders, models, pre_tokenizers

from optc.core.session import Session
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """256 byte tokens (ids are not the byte values), then <end>, <user>, <bot>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>", "<user>", "<bot>"])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": "<end>"}, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def plain() -> Iterator[Session]:
    with open_model(tiny_language_model("")) as session:
        yield session


@pytest.fixture(scope="module")
def growing() -> Iterator[Session]:
    with open_model(tiny_language_model("concat")) as session:
        yield session


@pytest.fixture(scope="module")
def static() -> Iterator[Session]:
    with open_model(tiny_language_model("static", 24)) as session:
        yield session


@pytest.fixture(scope="module")
def lowered_growing() -> Iterator[Session]:
    """Whatever room its cache has: `GroupQueryAttention`, updated in place."""
    with open_model(Ort().lower(tiny_language_model("concat"))) as session:
        yield session


@pytest.fixture(scope="module")
def lowered_static() -> Iterator[Session]:
    """A fixed cache, `GroupQueryAttention`, updated in place."""
    with open_model(Ort().lower(tiny_language_model("static", 24))) as session:
        yield session


@pytest.fixture(scope="module")
def last() -> Iterator[Session]:
    """Only the logits after each row's last token."""
    with open_model(Ort().lower(tiny_language_model("concat", last=True))) as session:
        yield session
