"""What is said of timings, whoever took them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from optc.rewrite.quant_grid import Grid
from optc.targets.speed import Instead, Kind, Speed, Timing, speed_notes

FOUR = Grid(4, 32, symmetric=False)
DOWN = Kind(1536, (576,), FOUR)
UP = Kind(576, (1536, 1536), FOUR)
FAST_TOKEN = Timing(1, 0.4, 0.0)
SLOW_PROMPT = Timing(128, 1.3, 1.0)


def test_slower_is_what_the_least_times_and_nearly_all_stretches_say() -> None:
    timing = Timing.of(128, [(1.0, 1.4), (1.0, 1.3), (2.0, 2.4), (9.0, 1.5), (1.0, 7.0)])
    assert timing == Timing(128, 1.3, 0.8)
    assert timing.is_slower
    assert not timing.is_faster


def test_faster_is_the_other_way_round() -> None:
    timing = Timing.of(1, [(1.0, 0.5), (1.2, 0.4), (1.0, 0.6)])
    assert timing == Timing(1, 0.4, 0.0)
    assert timing.is_faster
    assert not timing.is_slower


def test_a_tenth_is_not_slower() -> None:
    assert not Timing.of(1, [(1.0, 1.09)] * 20).is_slower
    assert not Timing.of(1, [(1.0, 0.95)] * 20).is_faster


def test_what_a_quarter_of_the_stretches_deny_is_noise() -> None:
    timing = Timing.of(1, [(1.0, 2.0)] * 12 + [(5.0, 2.0)] * 4)
    assert timing == Timing(1, 2.0, 0.75)
    assert not timing.is_slower
    timing = Timing.of(1, [(2.0, 1.0)] * 12 + [(2.0, 5.0)] * 4)
    assert timing == Timing(1, 0.5, 0.25)
    assert not timing.is_faster


def busy(rng: np.random.Generator, slower: float) -> list[tuple[float, float]]:
    """40 pairs where every other run waits for others, up to twenty times its own time."""
    noise = 1 + rng.random((40, 2)) * 0.1 + rng.random((40, 2)) * 20 * (rng.random((40, 2)) > 0.5)
    return [(float(plain), slower * float(quantised)) for plain, quantised in noise]


def test_equal_products_on_a_busy_machine_raise_no_alarm(rng: np.random.Generator) -> None:
    assert not any(Timing.of(1, busy(rng, 1.0)).is_slower for _ in range(500))


def test_what_is_much_slower_is_seen_on_a_busy_machine(rng: np.random.Generator) -> None:
    seen = [Timing.of(1, busy(rng, 1.5)) for _ in range(500)]
    assert sum(timing.is_slower for timing in seen) > 400
    assert max(timing.ratio for timing in seen) < 1.7


def test_whatever_the_noise_equal_products_rarely_raise_an_alarm(rng: np.random.Generator) -> None:
    """Of 8 fair coins 7 or more show heads 3.5 % of the time."""
    noise = np.exp(rng.standard_normal((1000, 12, 2)))
    trials = [[(float(a), float(b)) for a, b in trial] for trial in noise]
    assert sum(Timing.of(1, pairs).is_slower for pairs in trials) < 50


@pytest.mark.parametrize(
    ("grid", "rounding", "form"),
    [
        (FOUR, "", "int4 in groups of 32"),
        (Grid(8), "tensor", "int8, activations int8"),
        (Grid(8), "token", "int8, activations int8 by token"),
        (Grid(8, 32), "", "int8 in groups of 32"),
        (Grid(8, is_float=True), "tensor", "E4M3, activations E4M3"),
    ],
)
def test_a_kind_is_named_by_its_numbers(grid: Grid, rounding: str, form: str) -> None:
    kind = Kind(576, (1536, 1536), grid, rounding)
    assert kind.form == form
    assert kind.shape == "576x(1536+1536)"
    assert Kind(1536, (576,), grid, rounding).shape == "1536x576"


def test_what_is_slower_is_said_with_what_is_faster_and_what_to_try() -> None:
    speed = Speed(DOWN, 30, (FAST_TOKEN, SLOW_PROMPT), Instead("int8-dynamic", 0.5))
    assert speed_notes([speed]) == [
        "30 products (1536x576; int4 in groups of 32) are 1.3x slower for 128 tokens than in float "
        "on this machine (2.5x faster for one token); quant:scheme=int8-dynamic is 2.0x faster "
        "than float there"
    ]


def test_kinds_that_are_slower_alike_share_a_sentence() -> None:
    more = (Timing(1, 0.5, 0.1), Timing(128, 1.5, 1.0))
    speeds = [
        Speed(DOWN, 30, (FAST_TOKEN, SLOW_PROMPT), Instead("int8-dynamic", 0.5)),
        Speed(UP, 30, more),
    ]
    assert speed_notes(speeds) == [
        "90 products (1536x576, 576x(1536+1536); int4 in groups of 32) are 1.3 to 1.5x slower for "
        "128 tokens than in float on this machine (2.0 to 2.5x faster for one token); "
        "quant:scheme=int8-dynamic is 2.0x faster than float there"
    ]


def test_kinds_that_are_slower_in_different_ways_do_not() -> None:
    other = dataclasses.replace(UP, grid=Grid(8, 32))
    always = (Timing(1, 2.0, 1.0), SLOW_PROMPT)
    speeds = [Speed(DOWN, 1, (SLOW_PROMPT,)), Speed(UP, 1, always), Speed(other, 1, always)]
    assert speed_notes(speeds) == [
        "1 product (1536x576; int4 in groups of 32) is 1.3x slower for 128 tokens than in float on "
        "this machine",
        "2 products (576x(1536+1536); int4 in groups of 32) are 2.0x slower for one token and 1.3x "
        "slower for 128 tokens than in float on this machine",
        "2 products (576x(1536+1536); int8 in groups of 32) are 2.0x slower for one token and 1.3x "
        "slower for 128 tokens than in float on this machine",
    ]


def test_nothing_is_called_faster_that_only_seems_so() -> None:
    speed = Speed(DOWN, 1, (Timing(1, 0.4, 0.5), SLOW_PROMPT))
    assert "faster" not in speed_notes([speed])[0]


def test_nothing_is_said_where_nothing_is_slower() -> None:
    assert speed_notes([Speed(DOWN, 30, (FAST_TOKEN, Timing(128, 1.05, 1.0)))]) == []


def test_programs_get_ratios() -> None:
    speed = Speed(UP, 30, (FAST_TOKEN, SLOW_PROMPT), Instead("int8-dynamic", 0.5))
    assert speed.as_json() == {
        "products": 60,
        "shape": "576x(1536+1536)",
        "form": "int4 in groups of 32",
        "speedups": {"1": 2.5, "128": 0.77},
        "slower_for": [128],
        "instead": "int8-dynamic",
    }
    assert Speed(UP, 30, (FAST_TOKEN,)).as_json()["instead"] is None
