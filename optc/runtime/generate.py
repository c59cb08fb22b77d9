"""The generation loop: prefill, then one token at a time, for a batch of prompts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection

from optc.core.context import Array
from optc.core.errors import UsageError
from optc.core.hooks import peak_rss_bytes
from optc.core.session import Session
from optc.runtime.sampling import GREEDY, Sampling, choose
from optc.runtime.stepper import Rows, Stepper, make_stepper

__all__ = ["Finish", "Generation", "OnToken", "Stats", "generate"]

OnToken = Callable[[int, int], bool]
"""Called with (row, token) for each new token; True ends that row."""


class Finish:
    """Why a row ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a generation cost.

    Attributes:
        prompt_tokens: Tokens of all prompts together.
        new_tokens: New tokens of all rows together.
        ttft_seconds: Seconds until every row had its first new token.
        decode_tokens_per_second: New tokens after the first of each row, per second; None when
            there were none.
        peak_rss_bytes: Peak resident memory of the process, in bytes.
    """

    prompt_tokens: int
    new_tokens: int
    ttft_seconds: float
    decode_tokens_per_second: float | None
    peak_rss_bytes: int


@dataclasses.dataclass(frozen=True)
class Generation:
    """New tokens of each row (an end-of-sequence token included) and why the row ended."""

    tokens: tuple[tuple[int, ...], ...]
    finish: tuple[str, ...]
    stats: Stats


def _never(row: int, token: int) -> bool:
    return False


def generate(
    session: Session,
    prompts: Rows,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    eos: Collection[int] = (),
    on_token: OnToken = _never,
) -> Generation:
    """Continue each prompt.

    Args:
        session: A graph with the cache interface, or a plain one from `input_ids` to `logits`.
        prompts: Token ids of each row; rows may differ in length.
        max_new_tokens: Largest number of new tokens per row.
        sampling: How tokens are chosen.
        eos: Token ids that end a row.
        on_token: Called with (row, token) as soon as a token is known; True ends the row.

    Raises:
        UsageError: No prompt, an empty one, or no token asked for.
        UnsupportedError: The engine cannot take this; nothing was run.
    """
    if not prompts or not all(len(row) for row in prompts):
        raise UsageError("a prompt has no tokens")
    if max_new_tokens < 1:
        raise UsageError("at least one new token must be asked for", where="max_new_tokens")
    stepper = make_stepper(session, prompts, max_new_tokens)
    rows = [_Row(index, sampling, eos, on_token, max_new_tokens) for index in range(len(prompts))]
    seconds = _loop(stepper, rows, prompts)
    return Generation(
        tokens=tuple(tuple(row.tokens) for row in rows),
        finish=tuple(row.finish for row in rows),
        stats=_stats(prompts, rows, *seconds),
    )


def _loop(stepper: Stepper, rows: list[_Row], prompts: Rows) -> tuple[float, float]:
    """Run until no row is left; seconds to the first tokens, and seconds after them."""
    started = time.perf_counter()
    logits = stepper.feed(prompts)
    alive = [row for row, scores in zip(rows, logits, strict=True) if row.take(scores)]
    first = time.perf_counter()
    positions = [row.index for row in alive]
    while alive:
        if len(positions) < len(logits):
            stepper.keep(positions)
        logits = stepper.feed([row.tokens[-1:] for row in alive])
        going = [row.take(scores) for row, scores in zip(alive, logits, strict=True)]
        positions = [position for position, goes in enumerate(going) if goes]
        alive = [alive[position] for position in positions]
    return first - started, time.perf_counter() - first


class _Row:
    """The new tokens of one row, and when it is over."""

    def __init__(
        self, index: int, sampling: Sampling, eos: Collection[int], on_token: OnToken, limit: int
    ):
        self.index = index
        self.tokens: list[int] = []
        self.finish = Finish.LENGTH
        self._sampling = sampling
        self._rng = sampling.rng(index)
        self._eos = frozenset(eos)
        self._on_token = on_token
        self._limit = limit

    def take(self, scores: Array) -> bool:
        """Choose the next token from `scores` [vocab]; whether the row goes on."""
        token = choose(scores, self._sampling, self._rng)
        self.tokens.append(token)
        stopped = self._on_token(self.index, token)
        if token in self._eos:
            self.finish = Finish.EOS
            return False
        if stopped:
            self.finish = Finish.STOP
            return False
        return len(self.tokens) < self._limit


def _stats(prompts: Rows, rows: list[_Row], first: float, rest: float) -> Stats:
    count = sum(len(row.tokens) for row in rows)
    later = count - len(rows)
    return Stats(
        prompt_tokens=sum(len(row) for row in prompts),
        new_tokens=count,
        ttft_seconds=first,
        decode_tokens_per_second=later / rest if later and rest > 0 else None,
        peak_rss_bytes=peak_rss_bytes(),
    )
