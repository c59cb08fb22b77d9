"""Text, or chance where there is no tokenizer, as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from optc.core.context import Array
from optc.core.errors import InputError, SampleError
from optc.frontend.paragraphs import Texts, pieces
from optc.frontend.quiet import quiet
from optc.frontend.source import Source

__all__ = ["TOKEN_INPUTS", "Rows", "batch_of", "prompt_rows"]

TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")

# Some chat templates write today's date into the prompt unless they are given one.
_CHAT_DATE = "1 Jan 2026"
_RANDOM_PROMPT_TOKENS = (6, 20)


class Rows:
    """Successive rows of token ids, each from text that no earlier row used.

    Args:
        source: Its tokenizer is used; without one, rows are random.
        paragraphs: The text.
        longest: Most tokens that will be asked for.
        rng: Source of random rows.
        where: Where the text is from, for messages.
    """

    def __init__(
        self,
        source: Source,
        paragraphs: Sequence[str],
        longest: int,
        rng: np.random.Generator,
        where: str,
    ):
        self._source = source
        # A word is at least one token, so as many words fill a row, if the paragraph has them.
        self._texts: Iterator[str] = iter(pieces(paragraphs, longest))
        self._rng = rng
        self._where = where

    def take(self, tokens: int, *, exactly: bool = False) -> list[int]:
        """The next row.

        Args:
            tokens: Longest row wanted.
            exactly: Skip text that gives a shorter row.

        Raises:
            SampleError: The text is used up.
            InputError: The tokenizer is not that of the model.
        """
        tokenizer = self._source.tokenizer
        if tokenizer is None:
            return [int(t) for t in self._rng.integers(0, self._source.vocabulary, tokens)]
        for text in self._texts:
            with quiet():
                row = tokenizer(text, truncation=True, max_length=tokens)["input_ids"]
            if row and (len(row) == tokens or not exactly):
                return _known(self._source, row)
        remedy = "give more text with --texts or ask for fewer --samples"
        raise SampleError("the text is too short", where=self._where, remedy=remedy)


def batch_of(source: Source, rows: Sequence[Sequence[int]], width: int = 0) -> dict[str, Array]:
    """Rows as the inputs of `source`, padded on the right to the longest or to `width`.

    Returns:
        Arrays [rows, tokens] for each input, which is one of `TOKEN_INPUTS`, in the element type
        of the source's example.
    """
    width = max(width, *map(len, rows))
    padding = getattr(source.tokenizer, "pad_token_id", None) or 0
    ids = np.full((len(rows), width), padding, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    known = dict(zip(TOKEN_INPUTS, (ids, mask, positions, np.zeros_like(ids)), strict=True))
    types = {name: tensor.numpy().dtype for name, tensor in source.example.items()}
    return {name: known[name].astype(types[name]) for name in source.inputs}


def prompt_rows(
    source: Source, texts: Texts, count: int, rng: np.random.Generator
) -> Iterator[Array]:
    """At most `count` prompts, int64 [n]; every second one in the chat template, if any."""
    if source.tokenizer is None:
        for size in rng.integers(*_RANDOM_PROMPT_TOKENS, count):
            yield rng.integers(0, source.vocabulary, size)
        return
    for i, text in enumerate(texts.prompts[:count]):
        with quiet():
            row = _chat(source, text) if i % 2 and source.chat_template else _plain(source, text)
        yield np.array(_known(source, row), dtype=np.int64)


def _known(source: Source, row: Sequence[int]) -> list[int]:
    """The row, whose tokens must be ones that the model has."""
    largest = max(row, default=0)
    if source.vocabulary and largest >= source.vocabulary:
        problem = f"the tokenizer gives token {largest}, the model has {source.vocabulary}"
        remedy = "put the tokenizer that belongs to the model into its folder"
        raise InputError(problem, where=source.label, remedy=remedy)
    return list(row)


def _plain(source: Source, text: str) -> list[int]:
    return list(source.tokenizer(text)["input_ids"])


def _chat(source: Source, text: str) -> list[int]:
    row = source.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        date_string=_CHAT_DATE,
    )
    return list(row)
