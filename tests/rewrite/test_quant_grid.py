"""Grids of weights: what a step is, and how far rounding may move a number."""

import numpy as np
import pytest

from optc.rewrite.quant_grid import Grid, least_scale

GRIDS = [
    Grid(8),
    Grid(8, group=32),
    Grid(8, symmetric=False),
    Grid(4, group=32),
    Grid(4, group=32, symmetric=False),
    Grid(4, group=48, symmetric=False),
]


def _rows(seed=0, shape=(6, 128)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_moves_no_weight_further_than_half_a_step(grid):
    rows = _rows()
    scales, zeros = grid.scales(rows)
    steps = grid.steps(rows, scales, zeros)
    assert steps.min() >= grid.limits[0]
    assert steps.max() <= grid.limits[1]
    moved = np.abs(grid.values(steps, scales, zeros) - rows)
    # a zero point is a whole number: it moves the last step by up to half a step more
    bound = (0.5 if grid.symmetric else 1.0) * grid.spread(scales, rows.shape[1])
    assert (moved <= bound * 1.0001).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_weight_on_the_grid_stays_where_it_is(grid):
    once = grid.rounded(_rows())
    assert np.abs(grid.rounded(once) - once).max() <= 1e-5


@pytest.mark.parametrize("grid", [*GRIDS, Grid(8, is_float=True)], ids=str)
def test_groups_of_nothing_have_scale_one_and_become_zero(grid):
    rows = np.zeros((2, 96), np.float32)
    scales, zeros = grid.scales(rows)
    assert (scales == 1).all()
    assert not grid.values(grid.steps(rows, scales, zeros), scales, zeros).any()


@pytest.mark.parametrize("grid", [*GRIDS, Grid(8, is_float=True)], ids=str)
@pytest.mark.parametrize(("value", "kind"), [(1e-42, "float32"), (6e-8, "float16")])
def test_groups_too_faint_for_their_type_have_its_least_scale(grid, value, kind):
    rows = np.full((2, 96), value, np.float32)
    found = grid.scales(rows, np.dtype(kind))
    assert (found[0] == least_scale(np.dtype(kind))).all()
    moved = np.abs(grid.values(grid.steps(rows, *found), *found) - rows)
    assert (moved <= 1.001 * rows).all()


@pytest.mark.parametrize("grid", [*GRIDS, Grid(8, is_float=True)], ids=str)
@pytest.mark.parametrize("size", [0.05, 0.004, 0.0005])
def test_weights_of_any_ordinary_size_keep_their_steps_in_half_precision(grid, size):
    rows = size * _rows()
    half = np.linalg.norm(grid.rounded(rows, np.dtype(np.float16)) - rows)
    assert half < 1.05 * np.linalg.norm(grid.rounded(rows) - rows)


def test_groups_are_finer_than_channels_and_zero_points_than_symmetry():
    rows = _rows() ** 2  # one-sided: where a zero point pays

    def error(grid):
        return np.square(grid.rounded(rows) - rows).sum()

    assert error(Grid(4, group=32)) < error(Grid(4))
    assert error(Grid(4, group=32, symmetric=False)) < error(Grid(4, group=32))


def test_e4m3_keeps_small_weights_better_than_integers():
    rows = np.geomspace(1e-3, 1, 64, dtype=np.float32)[None]
    relative = [
        np.abs(grid.rounded(rows) / rows - 1).max() for grid in (Grid(8, is_float=True), Grid(8))
    ]
    assert relative[0] < 0.07 < relative[1]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (Grid(8), 100 * 64 + 100 * 4),
        (Grid(4, group=32), 100 * 32 + 200 * 4),
        (Grid(4, group=32, symmetric=False), 100 * 32 + 200 * 4 + 100),
    ],
)
def test_bytes_count_steps_scales_and_zero_points(grid, expected):
    assert grid.bytes(100, 64) == expected


@pytest.mark.parametrize("grid", [*GRIDS, Grid(8, is_float=True)], ids=str)
def test_weights_that_lie_the_other_way_round_get_the_same_steps(grid):
    rows = _rows(shape=(6, 192))
    turned = np.asfortranarray(rows)
    found = grid.scales(rows)
    for one, other in zip(found, grid.scales(turned), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(grid.steps(rows, *found), grid.steps(turned, *found))


@pytest.mark.parametrize("grid", [*GRIDS, Grid(8, is_float=True)], ids=str)
def test_stored_elements_are_the_steps(grid):
    rows = _rows()
    found = grid.scales(rows)
    elements = grid.elements(rows, *found)
    assert elements.dtype == grid.dtype.numpy()
    np.testing.assert_array_equal(
        elements.astype(np.float32), grid.steps(rows, *found).astype(np.float32)
    )


def test_extremes_are_found_among_numbers_of_either_sign_and_zeros():
    rows = np.array([[-0.0, 0.0, -3.5, 1e-30, 7.25, -1e-30, -8.0, 2.0] * 2], np.float32)
    scales, zeros = Grid(8, group=8, symmetric=False).scales(rows)
    np.testing.assert_allclose(scales, 15.25 / 255, rtol=1e-6)
    assert (zeros == round(8.0 / (15.25 / 255))).all()
