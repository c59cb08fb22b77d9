"""One interface over the two kinds of language-model graphs: with a cache, and without.

`feed(rows)` gives each row its next tokens and answers the logits after each row's last token.
Rows may differ in length; they are padded on the right, where causal attention never looks.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from optc.core.context import Array
from optc.core.errors import UnsupportedError
from optc.core.session import Port, Session
from optc.ir.interface import LENGTHS, LOGITS, NEW_LENGTHS, TOKENS, cache_ports

__all__ = ["CachedStepper", "RecomputeStepper", "Rows", "Stepper", "make_stepper", "places"]

Rows = Sequence[Sequence[int]]

_MASK = "attention_mask"
_POSITIONS = "position_ids"


class Stepper(abc.ABC):
    """A batch of sequences in the making."""

    @abc.abstractmethod
    def feed(self, rows: Rows) -> Array:
        """Append tokens to each row (at least one each); logits after the last, [rows, vocab]."""

    @abc.abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, by their present position in the batch."""


def make_stepper(session: Session, prompts: Rows, max_new_tokens: int) -> Stepper:
    """Pick the stepper that fits the session's signature, before anything is run.

    Raises:
        UnsupportedError: Not a language model; an input nobody can fill; a batch or a length that
            does not fit what the engine was built for.
    """
    inputs = {port.name: port for port in session.inputs}
    if TOKENS not in inputs or LOGITS not in {port.name for port in session.outputs}:
        raise UnsupportedError(f"the engine has no input '{TOKENS}' or no output '{LOGITS}'")
    _check_batch(inputs[TOKENS], len(prompts))
    caches = cache_ports(session.inputs)
    cached = bool(caches) and LENGTHS in inputs
    known = {LENGTHS, NEW_LENGTHS, *(c.past for c in caches)} if cached else {_MASK, _POSITIONS}
    _check_known(inputs, known | {TOKENS})
    # The last new token is never fed back.
    longest, room = max(len(row) for row in prompts) + max_new_tokens - 1, places(session)
    if room is not None and longest > room:
        limit = "the engine's cache holds" if cached else "the graph's fixed length is"
        raise UnsupportedError(
            f"prompt and new tokens need {longest} places, {limit} {room}",
            remedy="give a shorter prompt or fewer new tokens",
        )
    return (CachedStepper if cached else RecomputeStepper)(session, len(prompts))


def places(session: Session) -> int | None:
    """Tokens that fit in a static cache or a fixed sequence axis; None where there is no limit."""
    widths = [port.shape[-1] for port in session.inputs if port.name == TOKENS and port.shape]
    caches = cache_ports(session.inputs)
    limits = [c.capacity for c in caches] if caches else widths
    return min((n for n in limits if isinstance(n, int)), default=None)


def _check_batch(tokens: Port, batch: int) -> None:
    fixed = tokens.shape[0]
    if isinstance(fixed, int) and fixed != batch:
        raise UnsupportedError(f"the engine takes batches of {fixed}, not of {batch}")


def _check_known(inputs: dict[str, Port], known: set[str]) -> None:
    unknown = sorted(set(inputs) - known)
    if unknown:
        names = ", ".join(unknown)
        raise UnsupportedError(f"generation does not know how to fill the input {names}")


class CachedStepper(Stepper):
    """A graph with the cache interface: each token is computed once."""

    def __init__(self, session: Session, batch: int):
        self._session = session
        self._caches = cache_ports(session.inputs)
        self._past = {cache.past: cache.empty(batch) for cache in self._caches}
        self._lengths = np.zeros(batch, np.int64)
        self._last_only = any(port.name == NEW_LENGTHS for port in session.inputs)

    def feed(self, rows: Rows) -> Array:
        """Run the new tokens against the cache."""
        tokens, counts = _padded(rows)
        feeds = {TOKENS: tokens, LENGTHS: self._lengths, **self._past}
        if self._last_only:
            feeds[NEW_LENGTHS] = counts
        found = self._session.run(feeds)
        self._past = {cache.past: found[cache.present] for cache in self._caches}
        self._lengths = self._lengths + counts
        logits: Array = found[LOGITS]
        return logits[:, 0] if self._last_only else _last(logits, counts)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop the other rows from the cache."""
        chosen = np.asarray(rows, np.int64)
        self._past = {name: past[chosen] for name, past in self._past.items()}
        self._lengths = self._lengths[chosen]


class RecomputeStepper(Stepper):
    """A plain graph, `input_ids` to `logits`: everything is computed again for every token."""

    def __init__(self, session: Session, batch: int):
        self._session = session
        self._names = {port.name for port in session.inputs}
        width = next(port.shape[-1] for port in session.inputs if port.name == TOKENS)
        self._width = width if isinstance(width, int) else None
        self._rows: list[list[int]] = [[] for _ in range(batch)]

    def feed(self, rows: Rows) -> Array:
        """Run all tokens so far."""
        self._rows = [[*old, *new] for old, new in zip(self._rows, rows, strict=True)]
        tokens, counts = _padded(self._rows, self._width)
        positions = np.arange(tokens.shape[1], dtype=np.int64)
        mask = (positions < counts[:, None]).astype(np.int64)
        spread = np.broadcast_to(positions, tokens.shape).copy()
        known = {TOKENS: tokens, _MASK: mask, _POSITIONS: spread}
        feeds = {name: array for name, array in known.items() if name in self._names}
        return _last(self._session.run(feeds, (LOGITS,))[LOGITS], counts)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget the other rows."""
        self._rows = [self._rows[row] for row in rows]


def _padded(rows: Rows, width: int | None = None) -> tuple[Array, Array]:
    counts = np.array([len(row) for row in rows], np.int64)
    tokens = np.zeros((len(rows), width or int(counts.max())), np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return tokens, counts


def _last(logits: Array, counts: Array) -> Array:
    found: Array = logits[np.arange(len(counts)), counts - 1]
    return found
