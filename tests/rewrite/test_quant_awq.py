"""Factors that round busy channels more finely."""

import numpy as np
import pytest

from optc.rewrite.quant_awq import EXPONENTS, equalise
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_solve import nearest

GRIDS = [Grid(4, group=32), Grid(4, group=32, symmetric=False), Grid(4), Grid(8)]


def _samples(spread, width=128, count=800, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, width)) * np.exp(spread * rng.normal(size=width))).astype(
        np.float32
    )


def _weights(seed=1, shape=(40, 128)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _factors(rows, samples, grid):
    inputs = Inputs.of(samples.T @ samples)
    return equalise(rows, np.abs(samples).mean(axis=0), inputs, grid)


def _error(rows, samples, grid, factors):
    held = nearest(rows * factors, grid, shrinks=(1.0,)).values(grid) / factors
    return np.square(samples @ (held - rows).T).sum()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_uneven_inputs_are_evened_out_and_errors_fall_on_samples_not_seen(grid):
    rows, samples = _weights(), _samples(1.5)
    factors = _factors(rows, samples[:400], grid)
    assert np.corrcoef(np.log(factors), np.log(np.abs(samples).mean(axis=0)))[0, 1] > 0.9
    plain = _error(rows, samples[400:], grid, np.ones(128, np.float32))
    assert _error(rows, samples[400:], grid, factors) < 0.8 * plain


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_factors_tried_are_better_than_those_chosen(grid):
    rows, samples = _weights(), _samples(1.5)
    inputs = Inputs.of(samples.T @ samples)

    def error(factors):
        held = nearest(rows * factors, grid, shrinks=(1.0,)).values(grid) / factors
        return inputs.error(held - rows)

    chosen = error(_factors(rows, samples, grid))
    magnitudes = np.abs(samples).mean(axis=0).astype(np.float64)
    for exponent in EXPONENTS:
        factors = np.exp(exponent * np.log(magnitudes))
        factors /= np.exp(np.log(factors).mean())
        assert chosen <= error(factors.astype(np.float32)) * (1 + 1e-6)
    assert chosen < error(np.ones(128, np.float32))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_factors_are_positive_with_geometric_mean_one(grid):
    samples = _samples(1.0)
    samples[:, 5] = 0
    factors = _factors(_weights(), samples, grid)
    assert factors.dtype == np.float32
    assert (factors > 0).all()
    assert np.log(factors.astype(np.float64)).mean() == pytest.approx(0, abs=1e-5)


def test_weights_already_on_the_grid_are_left_alone():
    grid = Grid(4, group=32)
    rows = grid.rounded(_weights())
    np.testing.assert_array_equal(_factors(rows, _samples(1.0), grid), np.ones(128))


@pytest.mark.parametrize("dead", ["weights", "inputs"])
def test_where_nothing_flows_or_weighs_nothing_is_changed(dead):
    rows, samples = _weights(), _samples(1.0)
    (rows if dead == "weights" else samples)[:] = 0
    np.testing.assert_array_equal(_factors(rows, samples, Grid(4, group=32)), np.ones(128))


def test_of_many_weights_some_stand_for_all():
    rows, samples, grid = _weights(shape=(4000, 128)), _samples(1.5), Grid(4, group=32)
    factors = _factors(rows, samples, grid)
    plain = _error(rows, samples, grid, np.ones(128, np.float32))
    assert _error(rows, samples, grid, factors) < 0.8 * plain
