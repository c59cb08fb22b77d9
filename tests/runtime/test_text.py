"""Text to text: stop strings, streaming, rows of a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optc.core.context import Array, Feeds
from optc.core.errors import UsageError
from optc.core.session import Port
from optc.runtime.text import StopFilter, complete
from optc.runtime.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


class Reciter:
    """A language model that continues a one-token prompt with a text known by heart."""

    inputs = (Port("input_ids", "int64", ("B", "S")),)
    outputs = (Port("logits", "float32", ("B", "S", 259)),)

    def __init__(self, tokens: list[int]):
        self._tokens = tokens

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        batch, steps = feeds["input_ids"].shape
        logits = np.zeros((batch, steps, 259), np.float32)
        logits[:, -1, self._tokens[steps - 1]] = 1
        return {"logits": logits}


def recite(tokenizer: Tokenizer, text: str, stop: list[str], count: int = 100) -> list[str]:
    """The pieces shown, then the reason of the end."""
    pieces: list[str] = []
    found = complete(
        Reciter([*tokenizer.encode(text), 256]),
        tokenizer,
        [[1]],
        max_new_tokens=count,
        stop=stop,
        on_text=lambda row, piece: pieces.append(piece),
    )
    assert "".join(pieces) == found.texts[0]
    return [*pieces, found.finish[0]]


def test_text_streams_until_the_end_token(tokenizer: Tokenizer) -> None:
    assert recite(tokenizer, "héy", []) == ["h", "é", "y", "eos"]


def test_a_stop_string_ends_the_text_before_itself(tokenizer: Tokenizer) -> None:
    assert "".join(recite(tokenizer, "one\n\ntwo", ["\n\n"])) == "onestop"


def test_the_first_of_several_stop_strings_counts(tokenizer: Tokenizer) -> None:
    assert "".join(recite(tokenizer, "ab##cd", ["cd", "##"])) == "abstop"


def test_the_start_of_a_stop_string_is_held_back_and_given_if_it_was_none(
    tokenizer: Tokenizer,
) -> None:
    assert recite(tokenizer, "a##b#", ["###"]) == ["a", "##b", "#", "eos"]


def test_the_number_of_tokens_ends_the_text(tokenizer: Tokenizer) -> None:
    assert "".join(recite(tokenizer, "abcdef", [], 3)) == "abclength"


def test_an_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        recite(tokenizer, "x", [""])


def test_nothing_passes_the_filter_after_a_stop_string() -> None:
    stop = StopFilter(["x"])
    assert (stop.push("axb"), stop.push("c"), stop.finish()) == ("a", "", "")
