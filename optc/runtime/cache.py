"""The cache of a generation: the session's own, or arrays that go in and out of `run`."""

from __future__ import annotations

import time

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.session import Cache, CachedSession, Session
from optc.ir.cache_memory import cache_bytes, check_memory, too_much
from optc.ir.cache_room import check_fits, row_capacity
from optc.ir.interface import LENGTHS, cache_ports, token_name

__all__ = ["ArrayCache", "make_cache"]

_ADDRESSES = 1 << 62  # bytes that no array can have


def make_cache(session: Session, rows: int, tokens: int) -> Cache:
    """An empty cache for `rows` rows of up to `tokens` tokens each.

    Raises:
        UnsupportedError: The engine's caches have a fixed size, and it is smaller.
        NotEnoughMemoryError: The machine cannot hold them.
    """
    caches = cache_ports(session.inputs)
    if cache_bytes(caches, rows, tokens) >= _ADDRESSES:
        raise too_much(caches, rows, tokens)
    try:
        made = session.new_cache(rows, tokens) if isinstance(session, CachedSession) else None
    except MemoryError as error:  # more than can be reserved; only what tokens need is used of it
        raise too_much(caches, rows, tokens) from error
    if made is not None:
        return made
    check_memory(caches, rows, copies=2)
    return ArrayCache(session, rows, tokens)


class ArrayCache:
    """Implements `optc.core.session.Cache` over any session: past in, present out, at each step.

    A growing cache has as many tokens as its longest row. Caches of an encoder's output come out of
    the first step and are then only fed.

    Args:
        session: A graph with the cache interface.
        rows: Number of rows.
        tokens: Tokens that a row must have room for.

    Raises:
        UnsupportedError: The engine's caches have a fixed size, and it is smaller.
    """

    def __init__(self, session: Session, rows: int, tokens: int):
        self._session = session
        self._ports = cache_ports(session.inputs)
        self._rows = rows
        self._capacity = row_capacity(self._ports, tokens)
        self._arrays = {port.past: port.empty(rows) for port in self._ports}
        self._tokens = token_name(port.name for port in session.inputs) or ""
        self._seconds = 0.0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._rows

    @property
    def capacity(self) -> int:
        """Tokens that a row can have."""
        return self._capacity

    @property
    def seconds(self) -> float:
        """Seconds spent inside the session, over all steps."""
        return self._seconds

    def step(self, feeds: Feeds, fetch: tuple[str, ...], *, row: int = 0) -> dict[str, Array]:
        """Run once; see `optc.core.session.Cache`.

        Raises:
            SampleError: A length is negative, or more than the longest row ever had.
            UnsupportedError: No room for the new tokens.
        """
        held = min(
            (self._arrays[p.past].shape[2] for p in self._ports if not p.is_cross), default=None
        )
        check_fits(feeds[LENGTHS], feeds[self._tokens].shape[1], self._capacity, held)
        rows = slice(row, row + len(feeds[LENGTHS]))
        past = {name: array[rows] for name, array in self._arrays.items()}
        new = [p for p in self._ports if not (p.is_cross and past[p.past].shape[2])]
        presents = tuple(port.present for port in new)
        started = time.perf_counter()
        found = self._session.run({**feeds, **past}, (*fetch, *presents))
        self._seconds += time.perf_counter() - started
        for port in new:
            self._put(port.past, rows, found[port.present])
        return {name: found[name] for name in fetch}

    def _put(self, name: str, rows: slice, present: Array) -> None:
        if present.shape[0] == self._rows:
            self._arrays[name] = present
            return
        more = present.shape[2] - self._arrays[name].shape[2]
        if more > 0:
            room = [(0, 0), (0, 0), (0, more), (0, 0)]
            self._arrays[name] = np.pad(self._arrays[name], room)
        self._arrays[name][rows, :, : present.shape[2]] = present

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of a row over another, and all of what an encoder gave."""
        for port in self._ports:
            array = self._arrays[port.past]
            if not array.flags.writeable:
                array = self._arrays[port.past] = array.copy()
            count = array.shape[2] if port.is_cross else tokens
            array[target, :, :count] = array[source, :, :count]
