"""A constant as the tensors of its quantised form, computed when the model is written.

Steps, scales and zero points are tensors in the layout of the constant. Of a grid with groups,
every block of rows is computed from the same rows of the constant alone; of a grid with one scale
for a channel, the scales are computed first and kept.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.streamed import StreamedTensor, blocks_of, read_part, sizes
from optc.rewrite.quant_grid import Grid

__all__ = ["Constant", "Solution", "Steps"]


class Steps(Protocol):
    """Steps that are kept somewhere, [C,K]."""

    def read(self, rows: slice, columns: slice) -> Array:
        """A part of them."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """Steps that were chosen by more than rounding to the nearest.

    Attributes:
        steps: [C,K].
        scales: [C,G], of the type that they are stored in.
        zeros: [C,G], int32.
        grid: What they are steps of.
    """

    steps: Steps
    scales: Array
    zeros: Array
    grid: Grid


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A weight, seen as output channels by input channels, whatever its layout is.

    Attributes:
        tensor: [C,K] or [K,C], float.
        axis: Which axis of `tensor` is C.
        factors: What each input channel is multiplied by, [K]; None for nothing.
    """

    tensor: ir.TensorProtocol
    axis: int
    factors: Array | None = None

    @property
    def outer(self) -> int:
        """C."""
        return sizes(self.tensor)[self.axis]

    @property
    def inner(self) -> int:
        """K."""
        return sizes(self.tensor)[1 - self.axis]

    @property
    def kind(self) -> np.dtype[Any]:
        """Element type, which is that of the scales too."""
        return np.dtype(self.tensor.dtype.numpy())

    def read(self, outer: slice, inner: slice) -> Array:
        """Channels `outer`, inputs `inner`, as float32 [c,k] with the factors in."""
        if self.axis == 0:
            part = read_part(self.tensor, outer, inner)
        else:
            part = read_part(self.tensor, inner, outer).T
        rows = np.array(part, np.float32, order="C")
        if self.factors is not None:
            rows *= self.factors[inner]
        return rows

    def blocks(self) -> list[slice]:
        """Slices of channels that cover it, a few megabytes each."""
        return list(blocks_of(self.outer, 4 * self.inner))

    def write(
        self, grid: Grid, solved: Solution | None = None
    ) -> tuple[StreamedTensor, ir.TensorProtocol, ir.TensorProtocol | None]:
        """Its steps, scales, and zero points if the grid has any.

        Args:
            grid: What its steps may be.
            solved: The steps; the nearest ones when None.
        """
        source = _Nearest(self, grid) if solved is None else _Given(self, grid, solved)
        steps = StreamedTensor(
            source.steps, grid.dtype, sizes(self.tensor), row_bytes=16 * sizes(self.tensor)[1]
        )
        scales = source.scale_tensor(of_zeros=False)
        return steps, scales, None if grid.symmetric else source.scale_tensor(of_zeros=True)


class _Source:
    """Computes parts of the tensors, in the layout of the constant."""

    def __init__(self, constant: Constant, grid: Grid):
        self.constant, self.grid = constant, grid

    def block(self, outer: slice, inner: slice) -> tuple[Array, Array, Array]:
        """Steps [c,k], scales [c,g] and zeros [c,g] of whole groups."""
        raise NotImplementedError

    def channel_scales(self) -> tuple[Array, Array]:
        """Scales and zeros, [C,1] each, of a grid without groups."""
        raise NotImplementedError

    def steps(self, rows: slice, columns: slice) -> Array:
        """Part of the tensor of steps."""
        outer, inner = (rows, columns) if self.constant.axis == 0 else (columns, rows)
        inner = _bounded(inner, self.constant.inner)
        group = self.grid.group or 1
        wide = slice(inner.start // group * group, -(-inner.stop // group) * group)
        wide = slice(wide.start, min(wide.stop, self.constant.inner))
        steps = self.block(_bounded(outer, self.constant.outer), wide)[0]
        steps = steps[:, inner.start - wide.start : inner.stop - wide.start]
        found = steps.astype(self.grid.dtype.numpy())
        return found if self.constant.axis == 0 else found.T

    def scale_tensor(self, *, of_zeros: bool) -> ir.TensorProtocol:
        """The tensor of scales, or of zero points: [C], or one axis of the constant in groups."""
        constant, grid = self.constant, self.grid
        dtype = grid.dtype if of_zeros else constant.tensor.dtype
        if not grid.group:
            return ir.LazyTensor(
                lambda: ir.Tensor(self.channel_scales()[of_zeros][:, 0].astype(dtype.numpy())),
                dtype,
                ir.Shape([constant.outer]),
            )

        def part(rows: slice, columns: slice) -> Array:
            outer, groups = (rows, columns) if constant.axis == 0 else (columns, rows)
            groups = _bounded(groups, grid.groups(constant.inner))
            stop = min(groups.stop * grid.group, constant.inner)
            inner = slice(groups.start * grid.group, stop)
            found = self.scales_of(_bounded(outer, constant.outer), inner)[of_zeros]
            found = found.astype(dtype.numpy())
            return found if constant.axis == 0 else found.T

        count = grid.groups(constant.inner)
        shape = (constant.outer, count) if constant.axis == 0 else (count, constant.outer)
        row_bytes = 4 * grid.group * sizes(constant.tensor)[1]
        if constant.axis == 0:
            row_bytes = 8 * constant.inner
        return StreamedTensor(part, dtype, shape, row_bytes=row_bytes)

    def scales_of(self, outer: slice, inner: slice) -> tuple[Array, Array]:
        """Scales and zeros [c,g] of whole groups."""
        raise NotImplementedError


class _Nearest(_Source):
    """Rounds to the nearest step."""

    _scales: tuple[Array, Array] | None = None

    def block(self, outer: slice, inner: slice) -> tuple[Array, Array, Array]:
        rows = self.constant.read(outer, inner)
        if self.grid.group:
            scales, zeros = self.grid.scales(rows, self.constant.kind)
        else:
            scales, zeros = (part[outer] for part in self.channel_scales())
        return self.grid.steps(rows, scales, zeros), scales, zeros

    def scales_of(self, outer: slice, inner: slice) -> tuple[Array, Array]:
        return self.grid.scales(self.constant.read(outer, inner), self.constant.kind)

    def channel_scales(self) -> tuple[Array, Array]:
        if self._scales is None:
            found = [
                self.grid.scales(self.constant.read(part, slice(0, self.constant.inner)), kind)
                for kind in [self.constant.kind]
                for part in self.constant.blocks()
            ]
            scales, zeros = zip(*found, strict=True)
            self._scales = np.concatenate(scales), np.concatenate(zeros)
        return self._scales


class _Given(_Source):
    """Passes on steps that were solved."""

    def __init__(self, constant: Constant, grid: Grid, solved: Solution):
        super().__init__(constant, grid)
        self._solved = solved

    def block(self, outer: slice, inner: slice) -> tuple[Array, Array, Array]:
        return self._solved.steps.read(outer, inner), *self.scales_of(outer, inner)

    def scales_of(self, outer: slice, inner: slice) -> tuple[Array, Array]:
        group = self.grid.group or self.constant.inner
        groups = slice(inner.start // group, -(-inner.stop // group))
        return self._solved.scales[outer, groups], self._solved.zeros[outer, groups]

    def channel_scales(self) -> tuple[Array, Array]:
        return self._solved.scales, self._solved.zeros


def _bounded(part: slice, length: int) -> slice:
    start, stop, _ = part.indices(length)
    return slice(start, stop)
