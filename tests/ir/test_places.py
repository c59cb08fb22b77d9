"""Places of tokens: what is a part of a longer call, and what is there once."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.places import each_once, is_chunk

FEW, MANY = 3, 7


def places(count: int, rows: int = 2) -> np.ndarray:
    """[rows, tokens, 1]."""
    return np.arange(rows * count).reshape(rows, count, 1)


def flat(count: int) -> np.ndarray:
    return places(count).reshape(-1, 1)


KEPT = {
    "rows of tokens": places,
    "flattened": flat,
    "tokens before rows": lambda count: places(count).transpose(1, 0, 2),
    "copies": lambda count: np.concatenate([flat(count), flat(count)]),
    "constants beside each token": lambda count: np.concatenate(
        [places(count), np.full((2, count, 1), -1)], 2
    ),
}
LOST = {
    "the last token": lambda count: places(count)[:, -1:],
    "the first token": lambda count: places(count)[:, :1],
    "all but the last": lambda count: places(count)[:, :-1],
    "turned round": lambda count: places(count)[:, ::-1],
    "padded": lambda count: np.concatenate([places(count), np.full((2, 1, 1), -1)], 1),
    "nothing": lambda count: np.full((2, count, 1), -1),
    "another rank": lambda count: places(count) if count == FEW else flat(count),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_part_of_a_longer_call(name):
    assert is_chunk(KEPT[name](FEW), KEPT[name](MANY), (FEW, MANY))


@pytest.mark.parametrize("name", LOST)
def test_no_part_of_a_longer_call(name):
    assert not is_chunk(LOST[name](FEW), LOST[name](MANY), (FEW, MANY))


@pytest.mark.parametrize("name", ["rows of tokens", "flattened", "constants beside each token"])
def test_each_token_once(name):
    assert each_once(KEPT[name](MANY))


def test_copies_are_not_each_token_once():
    assert not each_once(KEPT["copies"](MANY))
