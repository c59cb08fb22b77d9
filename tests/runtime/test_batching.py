"""Whatever comes and goes, a request has the tokens that it has alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optc.core.context import Array, Feeds
from optc.core.errors import OptcError, UnsupportedError, UsageError
from optc.core.session import Port, Session
from optc.runtime.batching import Batcher
from optc.runtime.generate import generate
from optc.runtime.request import Request, Ticket
from optc.runtime.row import Finish
from optc.runtime.sampling import GREEDY, Sampling

KINDS = ["static", "lowered_static", "growing", "lowered_growing", "last"]
ROOM = 24
VOCAB = 259


@pytest.fixture(params=KINDS, scope="module")
def session(request: pytest.FixtureRequest) -> Session:
    found: Session = request.getfixturevalue(request.param)
    return found


def alone(session: Session, request: Request) -> tuple[tuple[int, ...], str]:
    found = generate(
        session,
        [request.prompt],
        max_new_tokens=request.max_new_tokens,
        sampling=request.sampling,
        eos=request.eos,
        on_token=lambda row, token: request.on_token(token),
    )
    return found.tokens[0], found.finish[0]


def answer(ticket: Ticket) -> tuple[tuple[int, ...], str | None]:
    return ticket.tokens, ticket.finish


@st.composite
def requests(draw: st.DrawFn) -> Request:
    prompt = tuple(draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=16)))
    hot = Sampling(3.0, draw(st.sampled_from([0, 30])), 0.95, draw(st.integers(0, 9)))
    return Request(
        prompt,
        draw(st.integers(1, ROOM + 1 - len(prompt))),
        draw(st.sampled_from([GREEDY, hot])),
        eos=draw(st.sets(st.integers(0, VOCAB - 1), max_size=60)),
        on_token=draw(st.sampled_from([lambda token: False, lambda token: token % 11 == 3])),
    )


@settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 12), requests()), min_size=1, max_size=10),
    slots=st.integers(1, 4),
    chunk=st.integers(1, 20),
)
def test_tokens_are_those_of_each_request_alone(
    arrivals: list[tuple[int, Request]], slots: int, chunk: int, shared: list[Session]
) -> None:
    for session in shared:
        batcher = Batcher(session, slots=slots, max_tokens=ROOM, chunk=chunk)
        tickets: list[Ticket] = []
        coming = sorted(arrivals, key=lambda arrival: arrival[0])
        for now in itertools.count():
            while coming and coming[0][0] <= now:
                tickets.append(batcher.submit(coming.pop(0)[1]))
            more = batcher.step()
            assert batcher.running <= slots
            if not more and not coming:
                break
        assert batcher.idle
        for ticket in tickets:
            assert answer(ticket) == alone(session, ticket.request)
        admitted = [ticket.admitted for ticket in tickets]
        assert admitted == sorted(admitted)


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> list[Session]:
    return [request.getfixturevalue(kind) for kind in KINDS]


class Watched:
    """A session that remembers the shapes of the tokens that it was given."""

    def __init__(self, session: Session):
        self._session = session
        self.shapes: list[tuple[int, ...]] = []

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._session.outputs

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        self.shapes.append(feeds["input_ids"].shape)
        return self._session.run(feeds, fetch)


def test_running_requests_wait_for_one_chunk_and_not_for_a_whole_prompt(growing: Session) -> None:
    watched = Watched(growing)
    batcher = Batcher(watched, slots=2, max_tokens=ROOM, chunk=4)
    first = batcher.submit(Request((1, 2), 12))
    batcher.step()
    batcher.submit(Request(tuple(range(11)), 4))
    for _ in range(3):
        had = len(first.tokens)
        batcher.step()
        assert len(first.tokens) == had + 1
    assert watched.shapes == [(1, 2), (1, 4), (1, 1), (1, 4), (1, 1), (1, 3), (1, 1)]
    batcher.step()
    assert watched.shapes[-1] == (2, 1)


def test_short_prompts_that_wait_together_go_in_together(growing: Session) -> None:
    watched = Watched(growing)
    batcher = Batcher(watched, slots=8, max_tokens=ROOM, chunk=12)
    asked = [Request(prompt, 3) for prompt in [(5,), (6, 7, 8), (9, 1), (2, 3, 4, 5)]]
    tickets = batcher.run(asked)
    # A fourth row would make 4 x 4 tokens of it.
    assert watched.shapes[:2] == [(3, 3), (1, 4)]
    assert [answer(ticket) for ticket in tickets] == [alone(growing, r) for r in asked]


def test_a_request_is_admitted_as_soon_as_another_ends(session: Session) -> None:
    batcher = Batcher(session, slots=1, max_tokens=ROOM)
    short, long = Request((1,), 2), Request((2, 3), 5)
    first, second = batcher.submit(short), batcher.submit(long)
    assert (batcher.waiting, batcher.running) == (2, 0)
    batcher.step()
    batcher.step()
    assert first.done
    assert (batcher.waiting, batcher.running) == (1, 0)
    batcher.step()
    assert len(second.tokens) == 1


def test_a_listener_may_submit_what_follows(lowered_growing: Session) -> None:
    batcher = Batcher(lowered_growing, slots=2, max_tokens=ROOM)
    follow_ups: list[Ticket] = []

    def ask_again(token: int) -> bool:
        follow_ups.append(batcher.submit(Request((token,), 2)))
        return True

    first = batcher.run([Request((4, 5), 9, on_token=ask_again)])[0]
    assert answer(first)[1] == Finish.STOP
    assert [answer(t) for t in follow_ups] == [
        alone(lowered_growing, Request(first.tokens, 2)),
    ]


def test_times_are_told_by_the_clock_that_was_given(lowered_static: Session) -> None:
    ticks = itertools.count()
    batcher = Batcher(lowered_static, slots=1, clock=lambda: float(next(ticks)))
    one, two = batcher.run([Request((1,), 3), Request((2,), 1)])
    assert one.submitted < two.submitted < one.admitted < one.first < one.finished < two.admitted
    assert one.queue_seconds == one.admitted - one.submitted
    assert one.ttft_seconds == one.first - one.submitted
    assert one.tokens_per_second == 2 / (one.finished - one.first)
    assert two.tokens_per_second is None
    assert batcher.seconds > 0


def test_a_ticket_knows_nothing_before_it_happens(static: Session) -> None:
    ticket = Batcher(static, slots=1).submit(Request((1,), 3))
    assert ticket.tokens == ()
    assert not ticket.done
    facts = (ticket.finish, ticket.queue_seconds, ticket.ttft_seconds, ticket.tokens_per_second)
    assert facts == (None,) * 4


def test_what_does_not_fit_in_a_row_is_refused_at_once(session: Session) -> None:
    batcher = Batcher(session, slots=1, max_tokens=ROOM)
    batcher.submit(Request(tuple(range(ROOM)), 1))
    with pytest.raises(UnsupportedError, match="need 25 places, a row has 24"):
        batcher.submit(Request(tuple(range(ROOM)), 2))
    assert batcher.waiting == 1


def test_a_batcher_says_what_it_cannot_batch(
    plain: Session, growing: Session, static: Session
) -> None:
    with pytest.raises(UnsupportedError, match="no cache to batch over; build with kv"):
        Batcher(plain, slots=1)
    with pytest.raises(UsageError, match="caches grow; say max_tokens"):
        Batcher(growing, slots=1)
    with pytest.raises(UnsupportedError, match="the engine's cache holds 24, not rows of 25"):
        Batcher(static, slots=1, max_tokens=25)
    with pytest.raises(UsageError, match="at least one slot"):
        Batcher(static, slots=0)
    other = Watched(growing)
    ports = (*growing.inputs, Port("pixels", "float32", ("B", 3)))
    strange = dataclasses.make_dataclass("Strange", ["inputs", "outputs", "run"])
    with pytest.raises(UnsupportedError, match="how to fill the input pixels"):
        Batcher(strange(ports, growing.outputs, other.run), slots=1, max_tokens=4)


@pytest.mark.parametrize(("prompt", "count"), [((), 1), ((1,), 0)])
def test_an_empty_request_is_refused(prompt: tuple[int, ...], count: int) -> None:
    with pytest.raises(UsageError):
        Request(prompt, count)


def test_a_callback_that_fails_ends_its_own_request_only(lowered_growing: Session) -> None:
    def fails(token: int) -> bool:
        raise RuntimeError("no")

    plain = [Request((1, 2, 3), 5), Request((7, 8), 6)]
    batcher = Batcher(lowered_growing, slots=3, max_tokens=ROOM)
    first = batcher.submit(plain[0])
    failing = batcher.submit(Request((4, 5), 5, on_token=fails))
    last = batcher.submit(plain[1])
    with pytest.raises(OptcError, match="on_token raised RuntimeError: no"):
        batcher.run()
    batcher.run()
    assert failing.done
    assert [answer(first), answer(last)] == [alone(lowered_growing, r) for r in plain]


def test_a_token_that_the_model_has_not_is_refused_at_once(lowered_growing: Session) -> None:
    batcher = Batcher(lowered_growing, slots=1, max_tokens=ROOM)
    with pytest.raises(UsageError, match="there is no token"):
        batcher.submit(Request((1, VOCAB), 5))
    assert batcher.idle
