"""The generation loop on a real, tiny language model."""

from __future__ import annotations

import numpy as np
import pytest

from optc.core.errors import SampleError, UnsupportedError, UsageError
from optc.core.session import Session
from optc.runtime.cache import make_cache
from optc.runtime.generate import generate
from optc.runtime.row import Finish
from optc.runtime.sampling import Sampling

PROMPTS = [[5, 9, 200], [17], [3, 3, 80, 41, 7, 100]]
KINDS = ["plain", "growing", "static", "lowered_growing", "lowered_static", "last"]


def recomputed(plain: Session, prompt: list[int], count: int) -> tuple[int, ...]:
    """Greedy continuation, the long way: all of the text, no loop of ours."""
    text = list(prompt)
    for _ in range(count):
        logits = plain.run({"input_ids": np.array([text], np.int64)})["logits"]
        text.append(int(logits[0, -1].argmax()))
    return tuple(text[len(prompt) :])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one row", "ragged"])
def test_greedy_equals_full_recompute(
    kind: str, prompts: list[list[int]], plain: Session, request: pytest.FixtureRequest
) -> None:
    session = request.getfixturevalue(kind)
    found = generate(session, prompts, max_new_tokens=12)
    assert found.tokens == tuple(recomputed(plain, prompt, 12) for prompt in prompts)
    assert set(found.finish) == {Finish.LENGTH}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_end_early_leave_the_others_alone(
    kind: str, plain: Session, request: pytest.FixtureRequest
) -> None:
    expected = [recomputed(plain, prompt, 12) for prompt in PROMPTS]
    end = expected[1][3]
    found = generate(request.getfixturevalue(kind), PROMPTS, max_new_tokens=12, eos=[end])
    for tokens, full, finish in zip(found.tokens, expected, found.finish, strict=True):
        stop = full.index(end) + 1 if end in full else len(full)
        assert tokens == full[:stop]
        assert finish == (Finish.EOS if end in full else Finish.LENGTH)
    assert found.finish[1] == Finish.EOS


def test_sampling_repeats_with_its_seed_and_does_not_depend_on_the_batch(growing: Session) -> None:
    hot = Sampling(temperature=3.0, top_k=50, seed=11)
    alone = generate(growing, PROMPTS[:1], max_new_tokens=10, sampling=hot)
    again = generate(growing, PROMPTS, max_new_tokens=10, sampling=hot)
    other = generate(growing, PROMPTS[:1], max_new_tokens=10, sampling=Sampling(3.0, 50, seed=12))
    assert alone.tokens[0] == again.tokens[0]
    assert alone.tokens != other.tokens


def test_each_token_is_told_at_once_and_the_listener_can_end_a_row(growing: Session) -> None:
    heard: list[tuple[int, int]] = []

    def listen(row: int, token: int) -> bool:
        heard.append((row, token))
        return row == 0 and len([r for r, _ in heard if r == 0]) == 2

    found = generate(growing, PROMPTS[:2], max_new_tokens=4, on_token=listen)
    assert [len(tokens) for tokens in found.tokens] == [2, 4]
    assert found.finish == (Finish.STOP, Finish.LENGTH)
    assert [row for row, _ in heard] == [0, 1, 0, 1, 1, 1]
    assert tuple(t for r, t in heard if r == 1) == found.tokens[1]


def test_statistics_count_what_happened(growing: Session) -> None:
    stats = generate(growing, PROMPTS, max_new_tokens=3).stats
    assert (stats.prompt_tokens, stats.new_tokens) == (10, 9)
    assert stats.ttft_seconds > 0
    assert stats.decode_tokens_per_second is not None
    assert generate(growing, PROMPTS, max_new_tokens=1).stats.decode_tokens_per_second is None


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 7])
def test_prompts_in_chunks_give_the_same_tokens(
    kind: str, chunk: int, plain: Session, request: pytest.FixtureRequest
) -> None:
    session = request.getfixturevalue(kind)
    found = generate(session, PROMPTS, max_new_tokens=8, prefill_chunk=chunk)
    assert found.tokens == tuple(recomputed(plain, prompt, 8) for prompt in PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_time_that_is_our_own_is_told(
    kind: str, request: pytest.FixtureRequest
) -> None:
    session = request.getfixturevalue(kind)
    overhead = generate(session, PROMPTS, max_new_tokens=4).stats.overhead
    assert overhead is not None
    assert 0 < overhead < 1
    assert generate(session, PROMPTS, max_new_tokens=1).stats.overhead is None


class Untouchable:
    """A session whose run must not be reached."""

    def __init__(self, session: Session):
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds: object, fetch: object = None) -> dict[str, np.ndarray]:
        raise AssertionError("it was run")


def test_a_static_cache_takes_exactly_what_it_holds(static: Session, plain: Session) -> None:
    # The last new token is never fed back, so 24 places hold 6 + 19 - 1.
    found = generate(static, PROMPTS[2:], max_new_tokens=19)
    assert found.tokens[0] == recomputed(plain, PROMPTS[2], 19)
    with pytest.raises(UnsupportedError, match=r"need 25 places, the engine's cache holds 24"):
        generate(Untouchable(static), PROMPTS, max_new_tokens=20)


def test_a_table_of_positions_is_a_limit_too(lowered_growing: Session, plain: Session) -> None:
    """It has 64 rows; without the note the runtime would fail in the middle."""
    found = generate(lowered_growing, PROMPTS[1:2], max_new_tokens=64)
    assert found.tokens[0] == recomputed(plain, PROMPTS[1], 64)
    with pytest.raises(UnsupportedError, match="need 65 places, the model has positions for 64"):
        generate(lowered_growing, PROMPTS[1:2], max_new_tokens=65)


def test_what_is_no_language_model_is_refused_before_running(plain: Session) -> None:
    nameless = Untouchable(plain)
    nameless.inputs = nameless.inputs[:0]
    with pytest.raises(UnsupportedError, match="no input 'input_ids'"):
        generate(nameless, PROMPTS, max_new_tokens=1)


def test_a_chunk_of_nothing_is_refused(growing: Session) -> None:
    with pytest.raises(UsageError, match="prefill_chunk: a chunk has at least one token"):
        generate(growing, PROMPTS, max_new_tokens=1, prefill_chunk=0)


@pytest.mark.parametrize(("prompts", "count"), [([], 1), ([[1], []], 1), ([[1]], 0)])
def test_empty_requests_are_refused(plain: Session, prompts: list[list[int]], count: int) -> None:
    with pytest.raises(UsageError):
        generate(plain, prompts, max_new_tokens=count)


@pytest.mark.parametrize(
    ("length", "problem"), [(4, "the past that was given holds 3"), (-1, "a length is 0")]
)
def test_a_cache_between_steps_knows_what_it_holds(
    growing: Session, length: int, problem: str
) -> None:
    cache = make_cache(growing, 2, 16)
    feeds = {"input_ids": np.ones((2, 3), np.int64), "cache_lengths": np.zeros(2, np.int64)}
    cache.step(feeds, ("logits",))
    feeds = {"input_ids": np.ones((2, 1), np.int64), "cache_lengths": np.array([3, length])}
    with pytest.raises(SampleError, match=f"row 1 has {length} tokens .*{problem}"):
        cache.step(feeds, ("logits",))
