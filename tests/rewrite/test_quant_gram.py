"""Second moments of inputs: the factor that rounding feeds back through, and the shifted target."""

import numpy as np
import pytest

from optc.rewrite.quant_gram import Inputs


def _samples(count=200, width=24, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width // 3, width)) * np.exp(rng.normal(size=width))
    rows = rng.normal(size=(count, width // 3)) @ mix + 0.3 * rng.normal(size=(count, width))
    return rows.astype(np.float32)


def test_the_factor_gives_the_gram_back():
    inputs = Inputs.of((rows := _samples()).T @ rows)
    gram = inputs.gram[np.ix_(inputs.order, inputs.order)].astype(np.float64)
    unit = np.eye(24) + inputs.feedback
    assert not np.tril(inputs.feedback).any()
    middle = np.linalg.solve(unit, np.linalg.solve(unit, gram).T)
    scale = np.sqrt(np.outer(middle.diagonal(), middle.diagonal()))
    assert np.abs(middle / scale - np.eye(24)).max() < 1e-4


def test_channels_go_by_falling_power_and_units_do_not_matter():
    gram = (rows := _samples()).T @ rows
    inputs, scaled = Inputs.of(gram), Inputs.of(gram * 2.0**20)
    assert (np.diff(gram.diagonal()[inputs.order]) <= 0).all()
    np.testing.assert_array_equal(inputs.gram, scaled.gram)


def test_the_error_is_that_of_the_products_but_for_the_damping():
    rows = _samples()
    inputs = Inputs.of(rows.T @ rows, damping=0.0)
    moved = np.random.default_rng(1).normal(size=(5, 24)).astype(np.float32)
    exact = np.square(rows @ moved.T).sum() / (np.square(rows).sum() / 24)
    assert inputs.error(moved) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("count", [1, 5])
def test_fewer_samples_than_channels_are_damped_until_they_can_be_factored(count):
    rows = _samples(count)
    inputs = Inputs.of(rows.T @ rows, damping=0.0)
    assert np.isfinite(inputs.feedback).all()
    assert np.linalg.eigvalsh(inputs.gram.astype(np.float64)).min() > 0


def test_where_nothing_flows_nothing_is_fed_back():
    inputs = Inputs.of(np.zeros((8, 8)), np.zeros((8, 8)))
    np.testing.assert_array_equal(inputs.gram, np.eye(8))
    assert not inputs.feedback.any()
    rows = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(inputs.target(rows), rows)


def test_the_target_is_what_least_squares_find():
    """|Y T' - X W'|^2 + damping * |T - W|^2 is smallest at T."""
    rng = np.random.default_rng(2)
    exact = _samples().astype(np.float64)
    moved = exact + 0.3 * rng.normal(size=exact.shape)
    weights = rng.normal(size=(4, 24)).astype(np.float32)
    inputs = Inputs.of(moved.T @ moved, moved.T @ exact, damping=0.05)
    tie = np.sqrt(0.05 * np.square(moved).sum() / 24) * np.eye(24)
    above = np.concatenate([exact @ weights.T, tie @ weights.T])
    expected = np.linalg.lstsq(np.concatenate([moved, tie]), above, rcond=None)[0].T
    np.testing.assert_allclose(inputs.target(weights), expected, atol=1e-4)


def test_the_same_inputs_on_both_sides_shift_nothing():
    rows = _samples()
    gram = rows.T @ rows
    weights = np.random.default_rng(3).normal(size=(4, 24)).astype(np.float32)
    np.testing.assert_allclose(Inputs.of(gram, gram).target(weights), weights, atol=1e-5)
