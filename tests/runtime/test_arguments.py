"""What is handed to a generation and is no prompt, no number, or no input: one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optc.core.errors import UsageError
from optc.core.session import Session
from optc.runtime.generate import generate
from optc.runtime.request import Request
from optc.runtime.text import complete
from optc.runtime.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "no prompt was given"),
        ("hello", "prompts is text, and generation takes token ids; give token ids"),
        (["hello"], "the prompt is text, and generation takes token ids"),
        ([[1], "hello"], "prompt 2 is text"),
        ([[]], "the prompt has no tokens"),
        ([[1], []], "prompt 2 has no tokens"),
        ([5], "the prompt is 5, not a row of token ids"),
        ([[1.5]], "the prompt has 1.5 in it, which is no token id"),
        ([[1, "a"]], "the prompt has 'a' in it, which is no token id"),
        ([[True]], "the prompt has True in it, which is no token id"),
        ([np.array([1.0])], "in it, which is no token id"),
    ],
)
def test_what_is_no_prompt(prompts: Any, sentence: str, growing: Session) -> None:
    with pytest.raises(UsageError) as caught:
        generate(growing, prompts, max_new_tokens=2)
    assert sentence in str(caught.value)


def test_ids_of_numpy_are_ids(growing: Session) -> None:
    found = generate(growing, np.array([[5, 9]]), max_new_tokens=3)
    assert found.tokens == generate(growing, [[5, 9]], max_new_tokens=3).tokens


@pytest.mark.parametrize("count", [None, 1.5, "3", True])
def test_what_is_no_number_of_tokens(count: Any, growing: Session) -> None:
    with pytest.raises(UsageError, match="max_new_tokens: a whole number of new tokens is needed"):
        generate(growing, [[1]], max_new_tokens=count)
    with pytest.raises(UsageError, match="a whole number of new tokens is needed"):
        Request((1,), count)


@pytest.mark.parametrize("kind", ["plain", "growing", "static"])
def test_an_input_that_the_engine_has_not(kind: str, request: pytest.FixtureRequest) -> None:
    session = request.getfixturevalue(kind)
    with pytest.raises(UsageError, match="has no input 'foo', but input_ids"):
        generate(session, [[1]], max_new_tokens=2, inputs={"foo": 1})  # type: ignore[dict-item]


def test_a_stop_string_is_one_string_and_can_be_written_down(
    growing: Session, tokenizer_folder: Path
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    free = complete(growing, tokenizer, [[5, 9]], max_new_tokens=12).texts[0]
    assert len(free) > 6
    stop = free[2:4]
    found = complete(growing, tokenizer, [[5, 9]], max_new_tokens=12, stop=stop)
    assert found.texts[0] == free[: free.index(stop)]
    with pytest.raises(UsageError, match="stop string 2 is not UTF-8"):
        complete(growing, tokenizer, [[5]], max_new_tokens=2, stop=["a", "\udcff"])
