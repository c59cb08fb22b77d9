"""Choosing a token from logits."""

from __future__ import annotations

import numpy as np
import pytest

from optc.core.errors import UnsupportedError, UsageError
from optc.runtime.sampling import GREEDY, Sampling, choose

LOGITS = np.array([0.0, 3.0, 1.0, 2.0, -1.0], np.float32)


def draws(sampling: Sampling, count: int = 4000, row: int = 0) -> np.ndarray:
    rng = sampling.rng(row)
    return np.array([choose(LOGITS, sampling, rng) for _ in range(count)])


def test_greedy_takes_the_largest_and_among_equals_the_first() -> None:
    rng = GREEDY.rng(0)
    assert choose(LOGITS, GREEDY, rng) == 1
    assert choose(np.array([1.0, 2.0, 2.0]), GREEDY, rng) == 1


def test_temperature_one_follows_the_softmax() -> None:
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    found = np.bincount(draws(Sampling(temperature=1.0)), minlength=5) / 4000
    # Four standard errors of a proportion over 4000 draws.
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000))


def test_top_k_keeps_the_k_most_likely() -> None:
    assert set(draws(Sampling(temperature=5.0, top_k=2))) == {1, 3}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # Softmax: .636 .234 .086 .032 .012; .636 falls short of .7, .870 reaches it.
    assert set(draws(Sampling(temperature=1.0, top_p=0.7))) == {1, 3}


def test_a_tiny_top_p_still_leaves_one_token() -> None:
    assert set(draws(Sampling(temperature=1.0, top_p=1e-6), 50)) == {1}


@pytest.mark.parametrize("top_p", [1.0, 0.999, 0.5, 1e-9])
@pytest.mark.parametrize("top_k", [0, 1, 40, 3000, 9999])
@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
def test_what_is_kept_is_what_sorting_everything_keeps(
    top_k: int, top_p: float, spread: float, rng: np.random.Generator
) -> None:
    """With equals among them, at any place."""
    logits = np.round(rng.normal(0, spread, 3000), 1).astype(np.float32)
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    weights = np.exp(logits[order].astype(np.float64))
    before = np.cumsum(weights) - weights
    kept = set(order[before < top_p * weights.sum() * (1 - 1e-12)].tolist()) | {int(order[0])}
    sampling = Sampling(1.0, top_k, top_p)
    stream = sampling.rng(0)
    assert {choose(logits, sampling, stream) for _ in range(300)} <= kept
    if len(kept) <= 3:
        assert {choose(logits, sampling, stream) for _ in range(300)} == kept


def test_the_same_seed_draws_the_same_and_rows_draw_apart() -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    assert np.array_equal(draws(sampling, 50), draws(sampling, 50))
    assert not np.array_equal(draws(sampling, 50), draws(sampling, 50, row=1))
    assert not np.array_equal(draws(sampling, 50), draws(Sampling(temperature=1.0, seed=4), 50))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0), Sampling(1.0, top_k=2)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_refused(sampling: Sampling, bad: float) -> None:
    logits = np.array([5, bad, 2], np.float32)
    with pytest.raises(UnsupportedError, match="not numbers"):
        choose(logits, sampling, sampling.rng(0))


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    sampling = Sampling(1e-309, top_k=3)
    assert choose(np.array([1, 9, 3], np.float32), sampling, sampling.rng(0)) == 1


def test_tokens_that_are_ruled_out_are_never_taken() -> None:
    logits = np.array([-np.inf, 0, -np.inf], np.float32)
    assert choose(logits, Sampling(1.0), Sampling(1.0).rng(0)) == 1
