"""Rounding with the inputs in mind: better than the nearest step, and never at odds with itself."""

import ml_dtypes
import numpy as np
import pytest

from optc.rewrite.quant_clip import clipped
from optc.rewrite.quant_descent import Draft, descend
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_solve import nearest, solve

GRIDS = [
    Grid(4, group=32),
    Grid(4, group=32, symmetric=False),
    Grid(4, group=48, symmetric=False),
    Grid(4),
    Grid(8),
    Grid(8, group=32, symmetric=False),
    Grid(8, is_float=True),
]
WIDTH = 160


def _samples(count=600, width=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width // 5, width)) * np.exp(rng.normal(size=width))
    rows = rng.normal(size=(count, width // 5)) @ mix + 0.5 * rng.normal(size=(count, width))
    return rows.astype(np.float32)


def _weights(seed=1, shape=(12, WIDTH)):
    return np.random.default_rng(seed).standard_t(5, size=shape).astype(np.float32)


def _inputs(samples):
    return Inputs.of(samples.T @ samples)


def _draft(rows, inputs, grid, kind=np.float32):
    draft = Draft.of(rows, grid, *clipped(rows, grid, np.dtype(kind)))
    for channel in range(rows.shape[1]):
        draft.round(channel, draft.target[channel])
    return draft


def _error(samples, moved):
    return float(np.square(samples.astype(np.float64) @ moved.T).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_products_are_closer_than_with_the_nearest_steps_on_samples_not_seen(grid):
    rows, samples = _weights(), _samples(1200)
    inputs = _inputs(samples[:600])
    plain = nearest(rows, grid, power=inputs.gram.diagonal()).values(grid)
    solved = solve(rows, inputs, grid).values(grid)
    assert _error(samples[600:], solved - rows) < 0.6 * _error(samples[600:], plain - rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_descent_never_makes_the_error_larger(grid):
    rows, inputs = _weights(), _inputs(_samples())
    draft = _draft(rows, inputs, grid)
    errors = [inputs.error(draft.errors().T.astype(np.float64))]
    for _ in range(6):
        descend(draft, inputs.gram, 1)
        errors.append(inputs.error(draft.errors().T.astype(np.float64)))
    assert (np.diff(errors) <= 1e-6 * errors[0]).all()
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_descent_is_monotone_in_scales_of_any_type(kind):
    rows, inputs = _weights(), _inputs(_samples())
    draft = _draft(rows, inputs, Grid(4, group=32, symmetric=False), kind)
    before = inputs.error(draft.errors().T.astype(np.float64))
    descend(draft, inputs.gram, 2)
    scales, _ = draft.ranges()
    assert scales.dtype == kind
    np.testing.assert_array_equal(scales.astype(np.float32).T, draft.scales)
    assert inputs.error(draft.errors().T.astype(np.float64)) < before


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_returned_is_on_the_grid_and_is_what_was_reached(grid):
    rows, inputs = _weights(), _inputs(_samples())
    solved = solve(rows, inputs, grid)
    expected = np.float32 if grid.is_float else np.int32
    assert solved.steps.dtype == expected
    assert solved.zeros.dtype == np.int32
    assert solved.scales.shape == solved.zeros.shape == (12, grid.groups(WIDTH))
    first, last = grid.limits
    for part in (solved.steps, solved.zeros):
        assert first <= part.min() <= part.max() <= last
    assert (solved.scales > 0).all()
    held = solved.values(grid)
    assert inputs.error(held - rows) <= inputs.error(
        solve(rows, inputs, grid, sweeps=0).values(grid) - rows
    )
    if grid.is_float:
        stored = solved.steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        np.testing.assert_array_equal(stored, solved.steps)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_inputs_that_have_nothing_in_common_leave_only_the_nearest_steps(grid):
    rows, power = _weights(), np.random.default_rng(2).uniform(0.5, 2, WIDTH)
    inputs = Inputs.of(np.diag(power), damping=0.0)
    solved = solve(rows, inputs, grid, sweeps=0)
    expected = nearest(rows, grid, power=power)
    np.testing.assert_array_equal(solved.steps, expected.steps)
    np.testing.assert_array_equal(solved.scales, expected.scales)


def test_without_descent_it_is_gptq():
    """Against the paper's updates with the inverse Hessian, column by column."""
    rows, inputs, grid = _weights(), _inputs(_samples()), Grid(4, group=32, symmetric=False)
    solved = solve(rows, inputs, grid, sweeps=0)
    spread = [np.repeat(part, 32, axis=1) for part in (solved.scales, solved.zeros)]
    left, order = rows.astype(np.float64), list(inputs.order)
    inverse = np.linalg.inv(inputs.gram.astype(np.float64))
    steps = np.zeros(rows.shape, np.int32)
    while order:
        channel = order[0]
        scale, zero = (part[:, channel] for part in spread)
        steps[:, channel] = np.clip(np.rint(left[:, channel] / scale) + zero, 0, 15)
        error = (steps[:, channel] - zero) * scale - left[:, channel]
        update = inverse[channel, order] / inverse[channel, channel]
        left[:, order] += error[:, None] * update
        inverse -= np.outer(inverse[:, channel], inverse[channel]) / inverse[channel, channel]
        order.pop(0)
    assert (steps == solved.steps).mean() > 0.999


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_on_the_grid_are_found_again(grid):
    rows = grid.rounded(_weights())
    found = solve(rows, _inputs(_samples()), grid).values(grid)
    np.testing.assert_allclose(found, rows, atol=1e-4 * np.abs(rows).max())


def test_products_of_moved_inputs_come_closer_to_those_of_the_original_ones():
    rng, rows, exact = np.random.default_rng(3), _weights(), _samples(2000)
    moved = 0.9 * exact + 0.2 * rng.normal(size=exact.shape).astype(np.float32)
    learnt, held = slice(0, 1000), slice(1000, None)
    gram = moved[learnt].T @ moved[learnt]
    grid = Grid(8, group=32)

    def error(inputs):
        weights = solve(rows, inputs, grid).values(grid)
        return np.square(moved[held] @ weights.T - exact[held] @ rows.T).sum()

    crossed = Inputs.of(gram, moved[learnt].T @ exact[learnt])
    assert error(crossed) < 0.8 * error(Inputs.of(gram))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_dead_channels_keep_their_weights(grid):
    rows, samples = _weights(), _samples()
    samples[:, 40:48] = 0
    solved = solve(rows, _inputs(samples), grid)
    close = grid.steps(rows, solved.scales, solved.zeros)  # scales moved once more after the steps
    near = 32 if grid.is_float else 1  # how far apart the last two steps are
    assert (np.abs(solved.steps - close) <= near)[:, 40:48].all()


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_few_or_no_samples_do_no_harm(count, grid):
    rows, samples = _weights(), _samples(count)
    gram = samples.T @ samples
    solved = solve(rows, Inputs.of(gram, gram), grid)
    assert np.isfinite(solved.values(grid)).all()
    plain = nearest(rows, grid).values(grid)
    assert np.square(solved.values(grid) - rows).sum() < 10 * np.square(plain - rows).sum()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_of_zero_stay_zero(grid):
    solved = solve(np.zeros((3, WIDTH), np.float32), _inputs(_samples()), grid)
    assert not solved.values(grid).any()


def test_the_same_question_has_the_same_answer():
    rows, samples, grid = _weights(), _samples(), Grid(4, group=32, symmetric=False)
    first, second = (solve(rows, _inputs(samples), grid) for _ in range(2))
    np.testing.assert_array_equal(first.steps, second.steps)
    np.testing.assert_array_equal(first.scales, second.scales)


def test_the_weights_given_are_not_changed():
    rows = _weights()
    before = rows.copy()
    solve(rows, _inputs(_samples()), Grid(4, group=32, symmetric=False))
    np.testing.assert_array_equal(rows, before)
