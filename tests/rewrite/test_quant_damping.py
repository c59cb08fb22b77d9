"""Damping found on one half of the samples for what was learnt on the other."""

import numpy as np
import pytest

from optc.rewrite.quant_damping import DAMPINGS, Moments, damped
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_solve import nearest, solve

GRID = Grid(4, group=32, symmetric=False)
WIDTH = 160


def _samples(count, common, seed=0):
    """Rows that have `common` of their power in a few directions, the same for every seed."""
    mix = np.random.default_rng(9).normal(size=(8, WIDTH)) / np.sqrt(8)
    rng = np.random.default_rng(seed)
    rows = np.sqrt(common) * rng.normal(size=(count, 8)) @ mix
    return (rows + np.sqrt(1 - common) * rng.normal(size=(count, WIDTH))).astype(np.float32)


def _weights(shape=(48, WIDTH)):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _damping(inputs):
    return float(np.trace(inputs.gram)) / WIDTH - 1


def _halves(samples):
    return Moments.of(samples[::2], samples[::2]), Moments.of(samples[1::2], samples[1::2])


def _error(samples, held, rows):
    return np.square(samples @ (held - rows).T).sum()


@pytest.mark.parametrize("moved", [False, True])
def test_the_error_is_that_of_the_products_but_for_a_constant(moved):
    exact, rows = _samples(100, 0.5), _weights()
    inputs = exact + moved * _samples(100, 0.0, seed=5)
    moments = Moments.of(inputs, exact)
    constant = float(np.square(exact @ rows.T).sum())
    for held in (rows, GRID.rounded(rows)):
        expected = float(np.square(inputs @ held.T - exact @ rows.T).sum())
        assert moments.error(held, rows) + constant == pytest.approx(expected, abs=1e-4 * constant)


@pytest.mark.parametrize("moved", [False, True])
def test_moments_of_parts_add_up(moved):
    exact = _samples(100, 0.5)
    inputs = exact + moved * _samples(100, 0.0, seed=5)
    parts = [Moments.of(inputs[part], exact[part]) for part in (slice(0, 40), slice(40, None))]
    whole, total = Moments.of(inputs, exact), parts[0] + parts[1]
    np.testing.assert_allclose(total.gram, whole.gram, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(total.cross, whole.cross, rtol=1e-4, atol=1e-3)


def test_few_samples_are_damped_more_than_many():
    few, many = (
        _damping(damped(_halves(_samples(n, 0.8)), _weights(), GRID)) for n in (200, 20000)
    )
    assert few > 3 * many


def test_channels_that_have_little_in_common_are_damped_more():
    loose, tight = (
        _damping(damped(_halves(_samples(400, common)), _weights(), GRID)) for common in (0.0, 0.9)
    )
    assert loose > 3 * tight


def test_samples_of_noise_do_no_harm_that_little_damping_does():
    rows, samples, fresh = _weights(), _samples(200, 0.0), _samples(4000, 0.0, seed=3)
    inputs = damped(_halves(samples), rows, GRID)
    careless = Inputs.of(samples.T @ samples, damping=0.01)
    plain = _error(fresh, nearest(rows, GRID).values(GRID), rows)
    assert _error(fresh, solve(rows, careless, GRID).values(GRID), rows) > 1.5 * plain
    assert _error(fresh, solve(rows, inputs, GRID).values(GRID), rows) < 1.1 * plain


def test_all_samples_are_learnt_from():
    samples = _samples(400, 0.5)
    inputs = damped(_halves(samples), _weights(), GRID)
    expected = Inputs.of(samples.T @ samples, damping=_damping(inputs))
    np.testing.assert_allclose(inputs.gram, expected.gram, atol=1e-4)


def test_many_weights_are_judged_by_some():
    rows = _weights((4000, WIDTH))
    inputs = damped(_halves(_samples(400, 0.5)), rows, GRID)
    assert any(_damping(inputs) == pytest.approx(damping, rel=0.02) for damping in DAMPINGS)


def test_where_nothing_flows_nothing_is_judged():
    halves = _halves(np.zeros((10, WIDTH), np.float32))
    np.testing.assert_array_equal(damped(halves, _weights(), GRID).gram, np.eye(WIDTH))
