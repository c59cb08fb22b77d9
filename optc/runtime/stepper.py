"""One interface over the two kinds of language-model graphs: with a cache, and without.

`feed(rows)` gives each row its next tokens and answers the logits after each row's last token.
Rows may differ in length; they are padded on the right, where causal attention never looks.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.errors import UnsupportedError, UsageError
from optc.core.session import Port, Session
from optc.ir.interface import (
    DECODER_PADDING,
    DECODER_POSITIONS,
    DECODER_TOKENS,
    LENGTHS,
    LOGITS,
    NEW_LENGTHS,
    PADDING,
    POSITIONS,
    cache_ports,
    token_name,
)
from optc.runtime.arguments import check_arrays
from optc.runtime.cache import make_cache
from optc.runtime.generator import generator_tokens

__all__ = [
    "CachedStepper",
    "RecomputeStepper",
    "Rows",
    "Stepper",
    "check_tokens",
    "last_logits",
    "make_stepper",
    "padded",
]

Rows = Sequence[Sequence[int]]

# What a graph without a cache may ask about its tokens, by the name of those: a mask, positions.
_ASKED = {DECODER_TOKENS: (DECODER_PADDING, DECODER_POSITIONS)}
_USUALLY_ASKED = (PADDING, POSITIONS)


class Stepper(abc.ABC):
    """A batch of sequences in the making."""

    @abc.abstractmethod
    def feed(self, rows: Rows) -> Array:
        """Append tokens to each row (at least one each).

        Returns:
            Logits after each row's last token, [rows, vocab]; good until the next call.
        """

    @abc.abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, by their present position in the batch, ascending."""

    @property
    @abc.abstractmethod
    def seconds(self) -> float:
        """Seconds spent inside the session so far."""


def make_stepper(
    session: Session,
    prompts: Rows,
    tokens: int,
    *,
    inputs: Feeds | None = None,
    chunk: int | None = None,
) -> Stepper:
    """Pick the stepper that fits the session's signature, before anything is run.

    Args:
        session: The session.
        prompts: Token ids of each row.
        tokens: Tokens that a row must have room for; `optc.runtime.limits` sees that there is.
        inputs: What else the graph takes, fed unchanged at each call; the first axis is the batch.
        chunk: Largest number of tokens of a row in one call; only with a cache.

    Raises:
        UsageError: Inputs that the graph has not, or of other rows; a token that the model has not.
        UnsupportedError: Not a language model; an input nobody can fill; a batch that the engine
            was not built for.
    """
    ports = {port.name: port for port in session.inputs}
    extra = check_arrays(inputs or {}, list(ports))
    ids = generator_tokens(session)
    _check_batch(ports[ids], len(prompts))
    caches = cache_ports(session.inputs)
    cached = bool(caches) and LENGTHS in ports
    known = [LENGTHS, NEW_LENGTHS, *(c.past for c in caches)] if cached else _asked(ids)
    _check_known(ports, {*known, ids, *extra})
    _check_rows(session, prompts, extra)
    if cached:
        return CachedStepper(session, len(prompts), tokens, inputs=extra, chunk=chunk)
    return RecomputeStepper(session, len(prompts), inputs=extra)


def _asked(tokens: str) -> Sequence[str]:
    return _ASKED.get(tokens, _USUALLY_ASKED)


def _check_batch(tokens: Port, batch: int) -> None:
    fixed = tokens.shape[0]
    if isinstance(fixed, int) and fixed != batch:
        raise UnsupportedError(f"the engine takes batches of {fixed}, not of {batch}")


def _check_rows(session: Session, prompts: Rows, inputs: Feeds) -> None:
    for name, array in inputs.items():
        if array.ndim and array.shape[0] != len(prompts):
            problem = f"the input '{name}' has {array.shape[0]} rows for {len(prompts)} prompts"
            raise UsageError(problem)
    check_tokens(session, [token for row in prompts for token in row])


def check_tokens(session: Session, tokens: Sequence[int]) -> None:
    """See that the model has these tokens, as far as its logits say which it has.

    Raises:
        UsageError: It has not; some graphs would take another one without a word.
    """
    shape = next(port.shape for port in session.outputs if port.name == LOGITS)
    count = shape[-1] if shape and isinstance(shape[-1], int) else None
    low, high = min(tokens, default=0), max(tokens, default=0)
    if low < 0 or (count is not None and high >= count):
        known = "" if count is None else f", the model has 0 to {count - 1}"
        raise UsageError(f"there is no token {low if low < 0 else high}{known}")


def _check_known(inputs: dict[str, Port], known: set[str]) -> None:
    unknown = sorted(set(inputs) - known)
    if unknown:
        names = ", ".join(unknown)
        raise UnsupportedError(f"generation does not know how to fill the input {names}")


class CachedStepper(Stepper):
    """A graph with the cache interface: each token is computed once.

    Args:
        session: The session.
        batch: Number of rows.
        tokens: Tokens that a row must have room for.
        inputs: What else the graph takes, fed unchanged; the first axis is the batch.
        chunk: Largest number of tokens of a row in one call, which bounds the memory that a long
            prompt needs; None for all at once.
    """

    def __init__(
        self,
        session: Session,
        batch: int,
        tokens: int,
        *,
        inputs: Feeds | None = None,
        chunk: int | None = None,
    ):
        self._cache = make_cache(session, batch, tokens)
        self._feeds = dict(inputs or {})
        self._tokens = token_name(port.name for port in session.inputs) or ""
        self._says_new = any(port.name == NEW_LENGTHS for port in session.inputs)
        self._lengths = np.zeros(batch, np.int64)
        self._chunk = chunk

    @property
    def seconds(self) -> float:
        """Seconds spent inside the session so far."""
        return self._cache.seconds

    def feed(self, rows: Rows) -> Array:
        """Run the new tokens against the cache."""
        if not all(len(row) for row in rows):
            raise UsageError("a row has no tokens")
        longest = max(len(row) for row in rows)
        step = self._chunk or longest
        logits = self._feed(rows, 0, step)
        for start in range(step, longest, step):
            logits = logits.copy()
            more = self._feed(rows, start, step)
            here = [index for index, row in enumerate(rows) if len(row) > start]
            logits[here] = more[here]
        return logits

    def _feed(self, rows: Rows, start: int, count: int) -> Array:
        """Run the next `count` tokens of each row, from `start` on; rows may have none left."""
        tokens, counts = padded([row[start : start + count] for row in rows])
        feeds = {**self._feeds, self._tokens: tokens, LENGTHS: self._lengths}
        if self._says_new:
            # What a row without tokens answers is nobody's.
            feeds[NEW_LENGTHS] = np.maximum(counts, 1)
        logits = self._cache.step(feeds, (LOGITS,))[LOGITS]
        self._lengths = self._lengths + counts
        return last_logits(logits, counts, tokens.shape[1], said=self._says_new)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop the other rows from the cache: those that stay move to the front."""
        for target, source in enumerate(rows):
            if target != source:
                self._cache.move(source, target, int(self._lengths[source]))
        chosen = np.asarray(rows, np.int64)
        self._lengths = self._lengths[chosen]
        self._feeds = _of_rows(self._feeds, rows)


class RecomputeStepper(Stepper):
    """A plain graph, tokens to `logits`: everything is computed again for every token."""

    def __init__(self, session: Session, batch: int, *, inputs: Feeds | None = None):
        self._session = session
        self._feeds = dict(inputs or {})
        self._names = {port.name for port in session.inputs} - set(self._feeds)
        self._tokens = token_name(port.name for port in session.inputs) or ""
        width = next(port.shape[-1] for port in session.inputs if port.name == self._tokens)
        self._width = width if isinstance(width, int) else None
        self._rows: list[list[int]] = [[] for _ in range(batch)]
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds spent inside the session so far."""
        return self._seconds

    def feed(self, rows: Rows) -> Array:
        """Run all tokens so far."""
        self._rows = [[*old, *new] for old, new in zip(self._rows, rows, strict=True)]
        tokens, counts = padded(self._rows, self._width)
        positions = np.arange(tokens.shape[1], dtype=np.int64)
        mask = (positions < counts[:, None]).astype(np.int64)
        spread = np.broadcast_to(positions, tokens.shape).copy()
        known = dict(
            zip((self._tokens, *_asked(self._tokens)), (tokens, mask, spread), strict=True)
        )
        feeds = {name: array for name, array in known.items() if name in self._names}
        started = time.perf_counter()
        logits = self._session.run({**self._feeds, **feeds}, (LOGITS,))[LOGITS]
        self._seconds += time.perf_counter() - started
        return last_logits(logits, counts, tokens.shape[1], said=False)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget the other rows."""
        self._rows = [self._rows[row] for row in rows]
        self._feeds = _of_rows(self._feeds, rows)


def _of_rows(feeds: Feeds, rows: Sequence[int]) -> dict[str, Array]:
    """Those rows of each array; one without axes is every row's."""
    chosen = np.asarray(rows, np.int64)
    return {name: array[chosen] if array.ndim else array for name, array in feeds.items()}


def padded(rows: Rows, width: int | None = None) -> tuple[Array, Array]:
    """Rows as one array [rows, width] with zeros behind each row's end, and each row's count."""
    counts = np.array([len(row) for row in rows], np.int64)
    tokens = np.zeros((len(rows), width or int(counts.max())), np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return tokens, counts


def last_logits(logits: Array, counts: Array, width: int, *, said: bool) -> Array:
    """What follows each row's last token.

    Args:
        logits: [B,S,V], or [B,1,V] of a graph that answers for one token of each row.
        counts: Tokens of each row.
        width: S.
        said: Whether the graph was told `counts`.

    Raises:
        UnsupportedError: The graph answers for the last column, which is not every row's last.
    """
    if logits.shape[1] == width:
        found: Array = logits[np.arange(len(counts)), counts - 1]
        return found
    if not said and (counts != width).any():
        problem = "the graph gives logits of the last column only, and rows differ in length"
        remedy = "run prompts one by one, or export the logits of every token"
        raise UnsupportedError(problem, remedy=remedy)
    return logits[:, 0]
