"""The generation loop: prefill, then one token at a time, for a batch of prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Collection

from optc.core.context import Feeds
from optc.core.errors import UsageError
from optc.core.hooks import peak_rss_bytes
from optc.core.session import Session, padding_ids
from optc.runtime.arguments import check_count, check_rows
from optc.runtime.encoder import has_encoder
from optc.runtime.limits import Limit, check_length, smallest_limit
from optc.runtime.padding import check_prompts
from optc.runtime.row import Finish, Row
from optc.runtime.sampling import GREEDY, Sampling
from optc.runtime.stepper import Rows, Stepper, make_stepper

__all__ = ["PREFILL_CHUNK", "Generation", "OnToken", "Stats", "generate"]

OnToken = Callable[[int, int], bool]
"""Called with (row, token) for each new token; True ends that row."""

PREFILL_CHUNK = 256
"""Enough tokens that a product's cost per token no longer falls; their logits fit in 50 MB."""


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
        overhead: Share of the decoding time that was spent outside the session; None when nothing
            was decoded.
    """

    prompt_tokens: int
    new_tokens: int
    ttft_seconds: float
    decode_tokens_per_second: float | None
    peak_rss_bytes: int
    overhead: float | None


@dataclasses.dataclass(frozen=True)
class Generation:
    """New tokens of each row, an end-of-sequence token included, and why it ended (`Finish`)."""

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
    inputs: Feeds | None = None,
    prefill_chunk: int | None = PREFILL_CHUNK,
    limit: Limit | None = None,
    shorten: bool = False,
    around_first: contextlib.AbstractContextManager[None] | None = None,
) -> Generation:
    """Continue each prompt.

    Args:
        session: A graph with the cache interface, or a plain one from tokens to `logits`.
        prompts: Token ids of each row; rows may differ in length.
        max_new_tokens: Largest number of new tokens per row.
        sampling: How tokens are chosen.
        eos: Token ids that end a row.
        on_token: Called with (row, token) as soon as a token is known; True ends the row.
        inputs: What else the graph takes, such as an encoder's input; fed unchanged at each call,
            the first axis is the row.
        prefill_chunk: With a cache, prompts go in by this many tokens at a time, which bounds the
            memory that a long one needs; None for all at once.
        limit: Most tokens of a row, where the engine itself has no smaller limit.
        shorten: Whether a row that has no room for `max_new_tokens` ends where its room does, with
            the limit's `finish`; otherwise nothing is run then.
        around_first: Entered around the session's work on the prompts, to explain how it fails.

    Raises:
        UsageError: No prompt, an empty one, one that is no row of token ids or has padding among
            them, no token asked for, a chunk of none, or inputs that the graph has not.
        UnsupportedError: The engine cannot take this, and nothing was run; or a row would go on
            behind a token that the model takes for padding.
    """
    check_rows(prompts)
    check_count(max_new_tokens, "max_new_tokens")
    if prefill_chunk is not None and prefill_chunk < 1:
        raise UsageError("a chunk has at least one token", where="prefill_chunk")
    padding = padding_ids(session)
    check_prompts(prompts, padding)
    room = smallest_limit(session, limit)
    new = 1 if shorten else max_new_tokens
    check_length(room, prompts, new, start=has_encoder(session))
    ends = [_end(room, len(prompt), max_new_tokens) for prompt in prompts]
    # The last new token is never fed back.
    longest = max(len(prompt) + end[0] - 1 for prompt, end in zip(prompts, ends, strict=True))
    stepper = make_stepper(session, prompts, longest, inputs=inputs, chunk=prefill_chunk)
    rows = [
        Row(
            sampling,
            sampling.rng(row),
            eos,
            most,
            functools.partial(on_token, row),
            padding=padding,
            end=end,
        )
        for row, (most, end) in enumerate(ends)
    ]
    times = _loop(stepper, rows, prompts, around_first or contextlib.nullcontext())
    return Generation(
        tokens=tuple(tuple(row.tokens) for row in rows),
        finish=tuple(row.finish for row in rows),
        stats=_stats(prompts, rows, times),
    )


def _end(room: Limit | None, prompt: int, wanted: int) -> tuple[int, str]:
    """Most new tokens of a row, and why it ends after them."""
    if room is None or prompt + wanted - 1 <= room.tokens:
        return wanted, Finish.LENGTH
    return room.tokens - prompt + 1, room.finish


@dataclasses.dataclass(frozen=True)
class _Times:
    """Seconds to the first tokens, after them, and of the latter those inside the session."""

    first: float
    rest: float
    inside: float


def _loop(
    stepper: Stepper,
    rows: list[Row],
    prompts: Rows,
    around_first: contextlib.AbstractContextManager[None],
) -> _Times:
    """Run until no row is left."""
    started = time.perf_counter()
    with around_first:
        logits = stepper.feed(prompts)
    going = [row.take(scores) for row, scores in zip(rows, logits, strict=True)]
    first, inside = time.perf_counter(), stepper.seconds
    alive = rows
    while any(going):
        if not all(going):
            stepper.keep([position for position, goes in enumerate(going) if goes])
            alive = [row for row, goes in zip(alive, going, strict=True) if goes]
        logits = stepper.feed([row.tokens[-1:] for row in alive])
        going = [row.take(scores) for row, scores in zip(alive, logits, strict=True)]
    return _Times(first - started, time.perf_counter() - first, stepper.seconds - inside)


def _stats(prompts: Rows, rows: list[Row], times: _Times) -> Stats:
    count = sum(len(row.tokens) for row in rows)
    later = count - len(rows)
    decoded = later > 0 and times.rest > 0
    return Stats(
        prompt_tokens=sum(len(row) for row in prompts),
        new_tokens=count,
        ttft_seconds=times.first,
        decode_tokens_per_second=later / times.rest if decoded else None,
        peak_rss_bytes=peak_rss_bytes(),
        overhead=1 - times.inside / times.rest if decoded else None,
    )
