"""Searched ranges: never worse than the extremes, and weighed by what flows through."""

import numpy as np
import pytest

from optc.rewrite.quant_clip import SHRINKS, clipped
from optc.rewrite.quant_grid import FLOAT32, Grid

GRIDS = [
    Grid(8),
    Grid(8, symmetric=False),
    Grid(4),
    Grid(4, group=32),
    Grid(4, group=32, symmetric=False),
    Grid(4, group=48, symmetric=False),
    Grid(8, is_float=True),
]


def _rows(seed=0, shape=(6, 128)):
    return np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32)


def _moved(rows, grid, found):
    return np.square(grid.values(grid.steps(rows, *found), *found) - rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_first_factor_alone_is_the_range_of_the_extremes_but_for_the_refit(grid):
    rows = grid.rounded(_rows())  # nothing left to refit
    for part, expected in zip(clipped(rows, grid, shrinks=(1.0,)), grid.scales(rows), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_channel_gets_worse_than_with_its_extremes(grid):
    rows, power = _rows(), np.random.default_rng(1).uniform(0.1, 10, 128)
    plain = (_moved(rows, grid, grid.scales(rows)) * power).sum(axis=1)
    found = (_moved(rows, grid, clipped(rows, grid, power=power)) * power).sum(axis=1)
    assert (found <= plain * (1 + 1e-6)).all()
    assert found.sum() < plain.sum()


@pytest.mark.parametrize("grid", [Grid(4, group=32), Grid(4, group=32, symmetric=False)], ids=str)
def test_each_group_gets_a_choice_no_worse_than_any_factor(grid):
    rows = _rows()
    starts = np.arange(0, rows.shape[1], 32)
    low, high = (reduce.reduceat(rows, starts, axis=1) for reduce in (np.minimum, np.maximum))
    errors = []
    for factor in map(np.float32, SHRINKS):
        found = grid.scales_between(low * factor, high * factor, FLOAT32)
        errors.append(np.add.reduceat(_moved(rows, grid, found), starts, axis=1))
    found = np.add.reduceat(_moved(rows, grid, clipped(rows, grid)), starts, axis=1)
    assert (found <= np.min(errors, axis=0) * (1 + 1e-5)).all()
    assert found.sum() < 0.99 * np.min(errors, axis=0).sum()  # the refit pays


def test_power_decides_what_may_be_clipped():
    rows = np.full((1, 32), 1.0, np.float32) * np.linspace(-1, 1, 32, dtype=np.float32)
    rows[0, 7] = 3.0
    faint, strong = np.ones(32), np.ones(32)
    faint[7], strong[7] = 0, 1000
    scales = [clipped(rows, Grid(4, group=32), power=power)[0].item() for power in (faint, strong)]
    assert scales[0] < 0.8 * scales[1]


def test_without_any_power_every_channel_counts():
    rows = _rows()
    for found, expected in zip(
        clipped(rows, Grid(4), power=np.zeros(128)), clipped(rows, Grid(4)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-42, 1e15])
def test_scales_are_positive_normal_numbers_of_their_type(grid, value):
    kind = np.dtype(np.float16 if value < 1 else np.float32)
    scales, _ = clipped(np.full((2, 96), value, np.float32), grid, kind)
    assert scales.dtype == kind
    assert (scales >= np.finfo(kind).tiny).all()
    assert np.isfinite(scales).all()
