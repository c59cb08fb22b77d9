"""One row of a generation: its new tokens, and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from optc.core.context import Array
from optc.runtime.padding import check_generated
from optc.runtime.sampling import Sampling, choose

__all__ = ["Finish", "Row"]


class Finish:
    """Why a row ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CACHE = "cache full"
    CONTEXT = "context full"


class Row:
    """The new tokens of one row.

    Args:
        sampling: How tokens are chosen.
        rng: Where sampling takes its chance from.
        eos: Token ids that end the row.
        limit: Largest number of new tokens.
        on_token: Called with each new token; True ends the row.
        padding: Token ids that the graph takes for padding.
        end: Why it ends where `limit` ends it.

    Attributes:
        tokens: New tokens so far, an end-of-sequence token included.
        finish: Why it ended, or would end if it ended now.
    """

    def __init__(
        self,
        sampling: Sampling,
        rng: np.random.Generator,
        eos: Collection[int],
        limit: int,
        on_token: Callable[[int], bool],
        *,
        padding: Collection[int] = (),
        end: str = Finish.LENGTH,
    ):
        self.tokens: list[int] = []
        self.finish = end
        self._sampling = sampling
        self._rng = rng
        self._eos = frozenset(eos)
        self._limit = limit
        self._on_token = on_token
        self._padding = padding

    def take(self, scores: Array) -> bool:
        """Choose the next token from `scores` [vocab]; whether the row goes on.

        Raises:
            UnsupportedError: It would go on behind a token that the graph takes for padding.
        """
        token = choose(scores, self._sampling, self._rng)
        self.tokens.append(token)
        stopped = self._on_token(token)
        if token in self._eos:
            self.finish = Finish.EOS
            return False
        if stopped:
            self.finish = Finish.STOP
            return False
        if len(self.tokens) >= self._limit:
            return False
        check_generated(token, self._padding)
        return True
