"""Factors are made of what calibration can say, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from optc.rewrite.quant_channels import counted
from optc.rewrite.quant_fit import fit
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_observe import Observation, Seen

K, C = 32, 24


def _seen(even, odd):
    return Seen(*(Observation(np.abs(rows).max(axis=0), rows) for rows in (even, odd)))


def _outlier(rng, rows):
    """Activations whose channel 5 is worth evening out."""
    found = rng.standard_normal((rows, K)).astype(np.float32)
    found[:, 5] *= 100
    return found


def _columns(rng):
    columns = rng.standard_normal((K, C)).astype(np.float32)
    columns[5] /= 100
    return columns


def test_channels_count_as_large_as_they_are_and_faint_ones_as_faint():
    sizes = np.array([1.0, 0.5, 1e-4, 100.0], np.float32)
    np.testing.assert_allclose(counted(sizes, 1e-5), [1, 0.5, 1e-3, 100], rtol=1e-6)


@pytest.mark.parametrize("nothing", [0.0, 1e-6])
def test_a_dead_channel_counts_as_an_ordinary_one(nothing):
    sizes = np.array([1.0, nothing, 2.0, 100.0], np.float32)
    np.testing.assert_array_equal(counted(sizes, 1e-5), [1, 2, 2, 100])


def test_a_channel_that_comes_to_life_after_calibration_keeps_its_products(rng):
    """Made of its silence, its factor is a thousandth of the others', and its weights are lost."""
    rows, columns = _outlier(rng, 64), _columns(rng)
    rows[:, 7] = 0
    grid = Grid(8, 32)
    found = fit(_seen(rows[::2], rows[1::2]), columns, grid, smooth=True, block=32)
    assert found.factors is not None
    weights = grid.rounded((columns * found.factors[:, None]).T).T
    later = np.zeros((1, K), np.float32)
    later[:, 7] = 1
    exact, got = later @ columns, (later / found.factors) @ weights
    assert np.linalg.norm(got - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("block", [None, 0, 32])
def test_one_token_is_not_enough_to_even_out_channels(block, rng):
    one, columns = _outlier(rng, 1), _columns(rng)
    assert fit(_seen(one, one), columns, Grid(8), smooth=True, block=block).factors is None


def test_one_sample_given_twice_is_one_sample(rng):
    rows = _outlier(rng, 8)
    assert not _seen(rows, rows.copy()).are_apart
    assert _seen(rows, _outlier(rng, 8)).are_apart
