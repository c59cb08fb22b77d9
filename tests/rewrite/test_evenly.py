"""A few of many, evenly spaced: both ends are among them, and nothing comes twice."""

import pytest

from optc.rewrite.evenly import evenly


@pytest.mark.parametrize(
    ("length", "count", "chosen"),
    [(9, 3, [0, 4, 8]), (10, 4, [0, 3, 6, 9]), (3, 7, [0, 1, 2]), (1, 5, [0]), (6, 1, [0])],
)
def test_both_ends_and_even_steps_between(length: int, count: int, chosen: list[int]) -> None:
    assert evenly(length, count).tolist() == chosen


@pytest.mark.parametrize("length", [1, 7, 1000, 49_152])
def test_where_there_are_no_more_all_are_taken(length: int) -> None:
    assert evenly(length, 1 << 40).tolist() == list(range(length))
