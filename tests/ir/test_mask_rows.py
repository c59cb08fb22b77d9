"""Two masks mean the same where keys are seen, up to what Softmax does not notice."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.mask_rows import same_rows, seen_keys

SEEN = seen_keys(np.array([1, 3]), 5)
BIAS = np.array([[[0.5, -1.0, 7.0, 7.0, 7.0], [0.0, 2.0, -np.inf, 1.0, 7.0]]])


def changed(row: int, column: int, to: float) -> np.ndarray:
    other = BIAS.copy()
    other[0, row, column] = to
    return other


def test_later_keys_are_not_seen():
    assert SEEN.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(BIAS + np.array([[3.0], [-4.0]]), id="one number per row"),
        pytest.param(changed(0, 2, -5.0), id="a key that is not seen"),
        pytest.param(changed(1, 2, -3e38), id="another number that hides"),
        pytest.param(changed(1, 1, 2.0 + 1e-7), id="rounding"),
    ],
)
def test_the_same(other):
    assert same_rows(other, BIAS, SEEN)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(changed(1, 0, 1e-3), id="a key that is seen"),
        pytest.param(changed(1, 2, 1.0), id="a hidden key is shown"),
        pytest.param(changed(0, 0, -np.inf), id="a key that is seen is hidden"),
        pytest.param(BIAS[..., :4], id="fewer keys"),
    ],
)
def test_not_the_same(other):
    assert not same_rows(other, BIAS[..., : other.shape[-1]], SEEN)


def test_booleans_are_compared_where_they_are_seen():
    mask = SEEN[None]
    assert same_rows(np.ones_like(mask), mask, SEEN)
    assert not same_rows(np.zeros_like(mask), mask, SEEN)
