"""Let a causal language model write texts, by running it whole for every token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Progress, no_progress
from optc.core.errors import UnsupportedError
from optc.core.session import Session
from optc.ir.interface import LOGITS, TOKENS
from optc.parity.cached import most_likely
from optc.parity.feeds import capacity, token_feeds, token_feeds_refusal
from optc.parity.signature import table_rows

__all__ = ["Writer"]

# Of the largest logit: far above round-off, far below what another token does to attention.
_CAUSAL_TOLERANCE = 1e-3
_TRIAL = 5


@dataclasses.dataclass(frozen=True)
class Writer:
    """A session that continues texts.

    Attributes:
        session: The model.
        vocabulary: Number of token ids it takes.
        seed: Seed of what is drawn.
    """

    session: Session
    vocabulary: int
    seed: int

    @classmethod
    def of(cls, model: ir.Model, session: Session, seed: int) -> Writer | None:
        """A writer, if the model turns out to be a causal language model."""
        tokens = next((value for value in model.graph.inputs if value.name == TOKENS), None)
        rows = None if tokens is None else table_rows(tokens)
        logits = next((port for port in session.outputs if port.name == LOGITS), None)
        if rows is None or logits is None or len(logits.shape) != 3:
            return None
        writer = cls(session, rows, seed)
        return writer if writer._is_causal() else None

    def _is_causal(self) -> bool:
        """Whether a later token leaves the logits of the earlier ones alone."""
        start = np.random.default_rng(self.seed).integers(0, self.vocabulary, _TRIAL)
        rows = [np.append(start, token) for token in (0, self.vocabulary - 1)]
        if token_feeds_refusal(self.session.inputs, rows[:1]) is not None:
            return False
        try:
            first, second = (self._logits([row])[0, :_TRIAL].astype(np.float64) for row in rows)
        except UnsupportedError:
            return False
        if first.shape[-1] < self.vocabulary:
            return False  # scores of labels, not of tokens
        return bool(np.abs(first - second).max() <= _CAUSAL_TOLERANCE * np.abs(first).max())

    def texts(self, rows: int, tokens: int, progress: Progress = no_progress) -> list[Array]:
        """Texts drawn from the model's own distribution, each int64 [n], n <= `tokens`.

        They are shorter where the graph takes no more tokens. The first token of each is random.
        """
        rng = np.random.default_rng([self.seed, rows, tokens])
        texts = [rng.integers(0, self.vocabulary, 1) for _ in range(rows)]
        for done in range(1, tokens):
            if not self._takes(done):
                break
            scores = self._last_logits(texts).astype(np.float64)[:, : self.vocabulary]
            drawn = (scores + rng.gumbel(size=scores.shape)).argmax(axis=-1)
            texts = [np.append(text, token) for text, token in zip(texts, drawn, strict=True)]
            progress("writing texts", done, tokens - 1)
        return texts

    def greedy(self, prompt: Array, count: int) -> Array:
        """The most likely continuation, int64 [m], m <= `count`; shorter where no more fits."""
        text = prompt
        while len(text) < len(prompt) + count and self._takes(len(text)):
            text = np.append(text, most_likely(self._logits([text])[0, len(text) - 1]))
        return text[len(prompt) :]

    def _takes(self, tokens: int) -> bool:
        room = capacity(self.session.inputs)
        row = np.zeros(tokens, np.int64)
        fits = room is None or tokens <= room
        return fits and token_feeds_refusal(self.session.inputs, [row]) is None

    def _last_logits(self, texts: Sequence[Array]) -> Array:
        """Logits [B,V] after texts of equal length; one by one where the graph takes no batch."""
        last = len(texts[0]) - 1
        try:
            return self._logits(texts)[: len(texts), last]
        except UnsupportedError:  # also what `token_feeds` says of a batch axis that is too small
            return np.stack([self._logits([text])[0, last] for text in texts])

    def _logits(self, texts: Sequence[Array]) -> Array:
        return self.session.run(token_feeds(self.session.inputs, texts), (LOGITS,))[LOGITS]
