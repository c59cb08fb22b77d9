"""A weight written as steps, scales and zero points, in one walk over it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import optc.ir.streamed as streamed
from optc.core.context import Array
from optc.ir.streamed import StreamedTensor
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_stream import Constant

SHAPE = 96, 64  # K and C of a weight [K,C]


class Walked:
    """A weight that counts how many of its elements were read."""

    def __init__(self, shape: tuple[int, int]):
        self.array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
        self.count = 0

    def tensor(self) -> StreamedTensor:
        """It as a tensor."""

        def part(rows: slice, columns: slice) -> Array:
            found = self.array[rows, columns]
            self.count += found.size
            return found

        return StreamedTensor(part, ir.DataType.FLOAT16, self.array.shape)


def bytes_of(tensor: Any) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)
    return file.getvalue()


def written(walked: Walked, axis: int, grid: Grid) -> list[Any]:
    return [t for t in Constant(walked.tensor(), axis).write(grid) if t is not None]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_BLOCK_BYTES", 2048)


GRIDS = [
    Grid(4, group=32, symmetric=False),
    Grid(4, group=32),
    Grid(8, group=16),
    Grid(4, group=24, symmetric=False),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_weight_is_read_once_for_all_its_tensors(grid: Grid, axis: int) -> None:
    walked = Walked(SHAPE[::-1] if axis == 0 else SHAPE)
    for tensor in written(walked, axis, grid):
        bytes_of(tensor)
    assert walked.count == walked.array.size


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("order", [reversed, list], ids=["scales first", "steps first"])
def test_the_order_in_which_they_are_written_changes_nothing(
    grid: Grid, axis: int, order: Callable[..., Any]
) -> None:
    walked = Walked(SHAPE[::-1] if axis == 0 else SHAPE)
    wanted = [t.numpy() for t in written(walked, axis, grid)]
    tensors = written(walked, axis, grid)
    for _ in range(2):  # and once more: nothing of the first time is in the way
        got = {id(tensor): bytes_of(tensor) for tensor in order(tensors)}
        for tensor, array in zip(tensors, wanted, strict=True):
            assert got[id(tensor)] == ir.Tensor(array, dtype=tensor.dtype).tobytes()


def test_nothing_is_kept_once_all_was_asked_for() -> None:
    tensors = written(Walked(SHAPE), 1, Grid(4, group=32, symmetric=False))
    source = tensors[0].part.__self__
    bytes_of(tensors[0])
    assert source._noted is not None
    bytes_of(tensors[1])
    bytes_of(tensors[2])
    assert source._noted is None
