"""Continuous batching: requests come and go between steps, over one cache.

Each call of `Batcher.step` does at most two runs of the session:

1. *Prefill.* The oldest request that is not in yet gets its next `chunk` prompt tokens; short
   prompts that wait together go in together.
2. *Decoding.* Every request that is in gets one token.

So a long prompt delays the others by one chunk at a time, and never by the whole of it. Decoding
requests are the first rows of the cache; the place of one that ends is taken by the last of them,
which costs one copy of its tokens, and a step is then a run on the rows `0 .. n-1`, with nothing in
between. A request's tokens do not depend on what else runs: each has a row, lengths and a stream of
chance of its own.

The idea of scheduling between steps is from Yu et al., "Orca" (OSDI 2022), that of prefill by
chunks beside decoding from Agrawal et al., "Sarathi-Serve" (OSDI 2024).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.errors import UnsupportedError, UsageError
from optc.core.session import Session, padding_ids
from optc.ir.interface import LENGTHS, LOGITS, NEW_LENGTHS, TOKENS, cache_ports
from optc.runtime.cache import make_cache
from optc.runtime.encoder import has_encoder
from optc.runtime.limits import Limit, check_length, smallest_limit
from optc.runtime.padding import check_prompts
from optc.runtime.request import Request, Ticket
from optc.runtime.row import Finish
from optc.runtime.stepper import Rows, check_tokens, last_logits, padded

__all__ = ["Batcher"]


class Batcher:
    """Runs many requests on one session. Not safe to use from several threads.

    Args:
        session: A graph with the cache interface.
        slots: Largest number of requests that run at once.
        max_tokens: Tokens that a request may have, prompt and new ones together; what the engine's
            caches hold, or `limit` says, when None.
        chunk: Prompt tokens per prefill run.
        limit: Most tokens of a request, where the engine itself has no smaller limit.
        clock: Seconds, for the statistics.

    Raises:
        UsageError: A number below 1, or no `max_tokens` for caches that grow.
        UnsupportedError: The engine has no cache, takes other inputs, or holds fewer tokens.
    """

    def __init__(
        self,
        session: Session,
        *,
        slots: int,
        max_tokens: int | None = None,
        chunk: int = 128,
        limit: Limit | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if min(slots, chunk) < 1:
            raise UsageError("a batcher has at least one slot, and chunks of at least one token")
        names = _check(session)
        most = smallest_limit(session, limit)
        self._limit = _row_limit(most, max_tokens)
        room = self._limit.tokens
        self._session = session
        self._cache = make_cache(session, slots, room)
        self._says_new = NEW_LENGTHS in names
        # Logits of the last column are those of the longest row only.
        self._one_by_one = not self._says_new and _columns(session) == 1
        self._slots, self._chunk = slots, chunk
        self._clock = clock
        self._waiting: deque[Ticket] = deque()
        self._entering: Ticket | None = None
        self._decoding: list[Ticket] = []

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have a row."""
        return len(self._decoding) + (self._entering is not None)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running

    @property
    def seconds(self) -> float:
        """Seconds spent inside the session so far."""
        return self._cache.seconds

    def submit(self, request: Request) -> Ticket:
        """Queue a request; it is admitted in its turn.

        Returns:
            Where its tokens appear, and how long things took.

        Raises:
            UnsupportedError: It needs more tokens than a row has room for.
            UsageError: A token that the model has not, or takes for padding.
        """
        check_length(self._limit, [request.prompt], request.max_new_tokens)
        check_tokens(self._session, request.prompt)
        padding = padding_ids(self._session)
        check_prompts([request.prompt], padding)
        ticket = Ticket(request, self._clock(), padding)
        self._waiting.append(ticket)
        return ticket

    def run(self, requests: Iterable[Request] = ()) -> list[Ticket]:
        """Submit requests and step until nothing is left to do."""
        tickets = [self.submit(request) for request in requests]
        while self.step():
            pass
        return tickets

    def step(self) -> bool:
        """Take one chunk of prompts in, and give every request that is in one token.

        Returns:
            Whether there is more to do.
        """
        before = len(self._decoding)
        self._prefill()
        # Those that came in just now have their token of this step.
        self._decode(before)
        return not self.idle

    def _prefill(self) -> None:
        if self._entering is None:
            group = self._admit()
            if len(group) > 1:
                self._prefill_whole(group)
                return
            self._entering = group[0] if group else None
        if self._entering is not None:
            self._prefill_chunk(self._entering)

    def _admit(self) -> list[Ticket]:
        """The oldest that waits, and those behind it whose whole prompts fit in one run with it."""
        group: list[Ticket] = []
        free, longest = self._slots - len(self._decoding), 0
        while self._waiting and len(group) < free:
            longest = max(longest, len(self._waiting[0].request.prompt))
            if group and (self._one_by_one or longest * (len(group) + 1) > self._chunk):
                break
            ticket = self._waiting.popleft()
            ticket.admitted = self._clock()
            ticket.row = len(self._decoding) + len(group)
            group.append(ticket)
        return group

    def _prefill_whole(self, group: list[Ticket]) -> None:
        logits = self._feed(group, [ticket.request.prompt for ticket in group])
        self._enter(group, logits)

    def _prefill_chunk(self, ticket: Ticket) -> None:
        prompt = ticket.request.prompt
        logits = self._feed([ticket], [prompt[ticket.length : ticket.length + self._chunk]])
        if ticket.length == len(prompt):
            self._entering = None
            self._enter([ticket], logits)

    def _enter(self, group: list[Ticket], logits: Array) -> None:
        """Take the first tokens; those that go on decode from now on."""
        for ticket, goes in zip(group, self._take(group, logits), strict=True):
            if goes:
                self._place(ticket, len(self._decoding))
                self._decoding.append(ticket)
        _raise_first(group)

    def _decode(self, count: int) -> None:
        """Give the first `count` decoding requests a token."""
        count = min(count, len(self._decoding))
        if not count:
            return
        rows = self._decoding[:count]
        logits = self._feed(rows, [ticket.last for ticket in rows])
        going = self._take(rows, logits)
        for index in reversed(range(count)):
            if not going[index]:
                self._retire(index)
        _raise_first(rows)

    def _take(self, tickets: list[Ticket], logits: Array) -> list[bool]:
        """Give each request its token; one whose callback fails ends, and the others go on."""
        now = self._clock()
        return [ticket.take(scores, now) for ticket, scores in zip(tickets, logits, strict=True)]

    def _retire(self, index: int) -> None:
        """Let the last decoding request have the row of one that ended."""
        last = self._decoding.pop()
        if index < len(self._decoding):
            self._decoding[index] = last
            self._place(last, index)

    def _place(self, ticket: Ticket, row: int) -> None:
        if ticket.row != row:
            self._cache.move(ticket.row, row, ticket.length)
            ticket.row = row

    def _feed(self, tickets: list[Ticket], rows: Rows) -> Array:
        """Run new tokens of requests in neighbouring rows; logits after the last of each, [n,V]."""
        tokens, counts = padded(rows)
        lengths = np.array([ticket.length for ticket in tickets], np.int64)
        feeds: dict[str, Array] = {TOKENS: tokens, LENGTHS: lengths}
        if self._says_new:
            feeds[NEW_LENGTHS] = counts
        logits = self._run(feeds, tickets[0].row)
        for ticket, count in zip(tickets, counts, strict=True):
            ticket.length += int(count)
        return last_logits(logits, counts, tokens.shape[1], said=self._says_new)

    def _run(self, feeds: Feeds, row: int) -> Array:
        return self._cache.step(feeds, (LOGITS,), row=row)[LOGITS]


def _row_limit(most: Limit | None, asked: int | None) -> Limit:
    """What a row has room for: what was asked for, as long as the engine and the model allow it."""
    if asked is None:
        if most is None:
            raise UsageError("this engine's caches grow", remedy="say max_tokens")
        return most
    if asked < 1:
        raise UsageError("a request has at least one token", where="max_tokens")
    if most is not None and asked > most.tokens:
        raise UnsupportedError(f"{most}, not rows of {asked}")
    return Limit(asked, "a row has", Finish.CACHE)


def _raise_first(tickets: list[Ticket]) -> None:
    """Pass on what a request's own callback raised, now that the batch is in order."""
    for ticket in tickets:
        if ticket.error is not None and not ticket.told:
            ticket.told = True
            raise ticket.error


def _columns(session: Session) -> int | str | None:
    """How many tokens of a row the engine gives logits for."""
    shape = next((port.shape for port in session.outputs if port.name == LOGITS), ())
    return shape[1] if len(shape) == 3 else None


def _check(session: Session) -> set[str]:
    """Names of the inputs of a session that can be batched."""
    if has_encoder(session):
        problem = "batching is for decoders, and this engine has an encoder"
        raise UnsupportedError(problem, remedy="use generate, which takes batches with inputs")
    names = {port.name for port in session.inputs}
    caches = cache_ports(session.inputs)
    if not caches or not {TOKENS, LENGTHS} <= names:
        raise UnsupportedError("the engine has no cache to batch over", remedy="build with kv")
    unknown = sorted(names - {TOKENS, LENGTHS, NEW_LENGTHS} - {cache.past for cache in caches})
    if unknown:
        raise UnsupportedError(f"batching does not know how to fill the input {', '.join(unknown)}")
    return names
