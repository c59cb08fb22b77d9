"""What a batcher is asked for, and where its answer appears."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from optc.core.context import Array
from optc.core.errors import OptcError
from optc.runtime.arguments import check_count, check_rows
from optc.runtime.row import Row
from optc.runtime.sampling import GREEDY, Sampling

__all__ = ["Request", "Ticket"]


def _never(token: int) -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        prompt: Token ids, at least one.
        max_new_tokens: Largest number of new tokens.
        sampling: How tokens are chosen; the same as `generate` gives for this prompt alone.
        eos: Token ids that end it.
        on_token: Called with each token as soon as it is known; True ends the request. It may
            submit further requests.

    Raises:
        UsageError: No prompt, or no token asked for.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    eos: Collection[int] = ()
    on_token: Callable[[int], bool] = _never

    def __post_init__(self) -> None:
        check_rows([self.prompt])
        check_count(self.max_new_tokens, "max_new_tokens")


class Ticket:
    """A request on its way through a batcher.

    Args:
        request: The request.
        now: When it was submitted, in seconds.
        padding: Token ids that the graph takes for padding.

    Attributes:
        submitted, admitted, first, finished: When it was submitted, got a row, had its first token
            and its last; None for what has not happened yet.
        error: What ended it before its time: its callback raised, or there was nothing to choose.
        told: Whether `Batcher.step` has raised that.
        row: Its row of the cache, for the batcher.
        length: How many of its tokens are in the cache, for the batcher.
    """

    def __init__(self, request: Request, now: float, padding: Collection[int] = ()):
        self.request = request
        self.submitted = now
        self.admitted: float | None = None
        self.first: float | None = None
        self.finished: float | None = None
        self.error: OptcError | None = None
        self.told = False
        self.row = 0
        self.length = 0
        self._row = Row(
            request.sampling,
            request.sampling.rng(0),
            request.eos,
            request.max_new_tokens,
            request.on_token,
            padding=padding,
        )

    @property
    def tokens(self) -> tuple[int, ...]:
        """New tokens so far."""
        return tuple(self._row.tokens)

    @property
    def done(self) -> bool:
        """Whether all tokens are there."""
        return self.finished is not None

    @property
    def finish(self) -> str | None:
        """Why it ended: one of `Finish`; None while it goes on."""
        return self._row.finish if self.done else None

    @property
    def queue_seconds(self) -> float | None:
        """Seconds it waited for a row."""
        return None if self.admitted is None else self.admitted - self.submitted

    @property
    def ttft_seconds(self) -> float | None:
        """Seconds from its submission to its first token."""
        return None if self.first is None else self.first - self.submitted

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first per second; None while it goes on, or if there was only one."""
        if self.first is None or self.finished is None or self.finished <= self.first:
            return None
        return (len(self._row.tokens) - 1) / (self.finished - self.first)

    @property
    def last(self) -> list[int]:
        """The newest token, as a list."""
        return self._row.tokens[-1:]

    def take(self, scores: Array, now: float) -> bool:
        """Choose the next token from `scores` [vocab]; whether the request goes on.

        What goes wrong ends this request and is kept in `error`.
        """
        try:
            goes = self._take(scores)
        except OptcError as error:
            self.error, goes = error, False
        if self.first is None:
            self.first = now
        if not goes:
            self.finished = now
        return goes

    def _take(self, scores: Array) -> bool:
        try:
            return self._row.take(scores)
        except OptcError:
            raise
        except Exception as error:
            problem = f"on_token raised {type(error).__name__}: {error}"
            raise OptcError(problem, where="a request") from error
