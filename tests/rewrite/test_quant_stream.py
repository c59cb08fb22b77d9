"""Quantised tensors in blocks are what they are as a whole, in either layout."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.scratch import Scratch
from optc.ir.streamed import read_part
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_stream import Constant, Solution
from optc.rewrite.quant_weights import is_finite, rounding_error

C, K = 12, 80
GRIDS = [
    Grid(8),
    Grid(8, symmetric=False),
    Grid(4, group=32),
    Grid(4, group=32, symmetric=False),
    Grid(8, group=16),
    Grid(8, is_float=True),
]


def _rows(seed=0):
    return np.random.default_rng(seed).normal(size=(C, K)).astype(np.float32)


def _constant(rows, axis):
    return Constant(ir.Tensor(np.ascontiguousarray(rows if axis == 0 else rows.T)), axis)


def _flat(tensor, axis):
    """A tensor of steps or scales as [C, ...], float32."""
    array = tensor.numpy().astype(np.float32)
    array = array[:, None] if array.ndim == 1 else array
    return array if axis == 0 or (array.shape[0] == C and array.shape[1] == 1) else array.T


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_written_stands_for_the_nearest_steps(grid, axis):
    rows = _rows()
    steps, scales, zeros = _constant(rows, axis).write(grid)
    taken = [_flat(steps, axis), _flat(scales, axis)]
    moved = np.zeros_like(taken[1]) if zeros is None else _flat(zeros, axis)
    np.testing.assert_allclose(grid.values(*taken, moved), grid.rounded(rows), atol=1e-6)
    assert steps.dtype == grid.dtype


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_part_is_a_part_of_the_whole(grid, axis):
    steps, scales, _ = _constant(_rows(), axis).write(grid)
    whole = steps.numpy()
    part = read_part(steps, slice(3, 9), slice(2, 11))
    assert (part == whole[3:9, 2:11]).all()
    if grid.group:
        assert (read_part(scales, slice(1, 3), slice(0, 2)) == scales.numpy()[1:3, 0:2]).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_factors_are_on_the_input_channels(axis):
    rows = _rows()
    factors = np.geomspace(0.1, 10, K).astype(np.float32)
    scaled = dataclasses.replace(_constant(rows, axis), factors=factors)
    plain = _constant(rows * factors, axis)
    for one, other in zip(scaled.write(Grid(4, 32)), plain.write(Grid(4, 32)), strict=True):
        if one is not None:
            assert (one.numpy() == other.numpy()).all()


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, symmetric=False), Grid(8)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_steps_that_were_solved_are_passed_on(grid, axis):
    rng = np.random.default_rng(3)
    low, high = grid.limits
    steps = rng.integers(low, high + 1, (C, K)).astype(np.int8 if low < 0 else np.uint8)
    scales = rng.uniform(0.1, 1, (C, grid.groups(K))).astype(np.float32)
    zeros = np.zeros(scales.shape, np.int32) if grid.symmetric else scales.astype(np.int32) + 7
    given = Solution(Scratch().keep(steps), scales, zeros, grid)
    written = _constant(_rows(), axis).write(grid, given)
    assert (_flat(written[0], axis) == steps).all()
    assert (_flat(written[1], axis) == scales).all()
    assert written[2] is None or (_flat(written[2], axis) == zeros).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_what_is_not_finite_is_seen(value, kind):
    array = _rows().astype(kind)
    assert is_finite(ir.Tensor(array))
    array[-1, -1] = value
    assert not is_finite(ir.Tensor(array))


def test_the_largest_finite_numbers_are_finite():
    assert is_finite(ir.Tensor(np.full((2, 2), np.finfo(np.float16).max)))


def test_the_error_of_rounding_is_relative_to_the_weight():
    rows = _rows()
    expected = np.linalg.norm(Grid(4, 32).rounded(rows) - rows) / np.linalg.norm(rows)
    assert rounding_error(_constant(rows, 1), Grid(4, 32)) == pytest.approx(expected, rel=1e-5)
    assert rounding_error(_constant(10 * rows, 1), Grid(4, 32)) == pytest.approx(expected, 1e-5)
