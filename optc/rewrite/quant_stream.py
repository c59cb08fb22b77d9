"""A constant as the tensors of its quantised form, computed when the model is written.

Steps, scales and zero points are tensors in the layout of the constant. Of a grid with groups,
every block of rows is computed from the same rows of the constant alone; of a grid with one scale
for a channel, the scales are computed first and kept.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.streamed import EVERY, StreamedTensor, blocks_of, read_part, sizes
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_noted import Noted

__all__ = ["Constant", "Solution", "Steps"]

_TILE = 1 << 16  # elements


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
        """Channels `outer`, inputs `inner`, as float32 [c,k] with the factors in.

        In memory they lie as they do in the tensor: turning numbers of 4 bytes around is slower
        than all that is done to them here.
        """
        return self.widened(self.read_stored(outer, inner), inner)

    def read_stored(self, outer: slice, inner: slice) -> Array:
        """The same [c,k] as it is stored, without factors."""
        if self.axis == 0:
            return read_part(self.tensor, outer, inner)
        return read_part(self.tensor, inner, outer).T

    def widened(self, stored: Array, inner: slice) -> Array:
        """What was stored of inputs `inner` as float32, with the factors in."""
        rows = stored.astype(np.float32, order="K")
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
        shape = sizes(self.tensor)
        together = grid.group if grid.group and self.axis == 1 else 1
        steps = StreamedTensor(
            source.steps, grid.dtype, shape, row_bytes=16 * shape[1], together=together
        )
        scales = source.scale_tensor(of_zeros=False)
        return steps, scales, None if grid.symmetric else source.scale_tensor(of_zeros=True)


class _Source(abc.ABC):
    """Computes parts of the tensors, in the layout of the constant."""

    def __init__(self, constant: Constant, grid: Grid):
        self.constant, self.grid = constant, grid

    @abc.abstractmethod
    def elements(self, outer: slice, inner: slice) -> Array:
        """Steps [c,k] of whole groups, in the type that they are stored in."""

    @abc.abstractmethod
    def channel_scales(self) -> tuple[Array, Array]:
        """Scales and zeros, [C,1] each, of a grid without groups."""

    def steps(self, rows: slice, columns: slice) -> Array:
        """Part of the tensor of steps."""
        outer, inner = (rows, columns) if self.constant.axis == 0 else (columns, rows)
        inner = _bounded(inner, self.constant.inner)
        group = self.grid.group or 1
        wide = slice(inner.start // group * group, -(-inner.stop // group) * group)
        wide = slice(wide.start, min(wide.stop, self.constant.inner))
        found = self.elements(_bounded(outer, self.constant.outer), wide)
        found = found[:, inner.start - wide.start : inner.stop - wide.start]
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
            outer = _bounded(outer, constant.outer)
            found = self.scales_of(outer, inner, of_zeros=of_zeros)
            found = found.astype(dtype.numpy())
            return found if constant.axis == 0 else found.T

        count = grid.groups(constant.inner)
        shape = (constant.outer, count) if constant.axis == 0 else (count, constant.outer)
        row_bytes = 4 * grid.group * sizes(constant.tensor)[1]
        if constant.axis == 0:
            row_bytes = 8 * constant.inner
        return StreamedTensor(part, dtype, shape, row_bytes=row_bytes)

    @abc.abstractmethod
    def scales_of(self, outer: slice, inner: slice, *, of_zeros: bool) -> Array:
        """Scales, or zeros, [c,g] of whole groups."""


class _Nearest(_Source):
    """Rounds to the nearest step."""

    _scales: tuple[Array, Array] | None = None
    _noted: Noted | None = None

    def elements(self, outer: slice, inner: slice) -> Array:
        if not self.grid.group:
            scales, zeros = (part[outer] for part in self.channel_scales())
            return self.grid.elements(self.constant.read(outer, inner), scales, zeros)
        if self._noted is None:
            shape = self.constant.outer, self.grid.groups(self.constant.inner)
            self._noted = Noted.nothing(shape, self.constant.kind, self.grid)
        block = self.constant.read_stored(outer, inner)
        found = np.empty_like(block, self.grid.dtype.numpy())
        groups = self._groups(inner)
        for rows, columns in self._tiles(*block.shape):
            tile = self.constant.widened(block[rows, columns], _moved(columns, inner.start))
            scales, zeros = self.grid.scales(tile, self.constant.kind)
            found[rows, columns] = self.grid.elements(tile, scales, zeros)
            which = _moved(self._groups(columns), groups.start)
            self._noted.note(_moved(rows, outer.start), which, scales, zeros)
        return found

    def _tiles(self, outer: int, inner: int) -> Iterator[tuple[slice, slice]]:
        """Parts of a block of whole groups, along the axis that comes first in memory.

        Small enough to stay near the processor through all that is done to them.
        """
        if self.constant.axis == 0:
            step = max(1, _TILE // inner)
            for start in range(0, outer, step):
                yield slice(start, min(outer, start + step)), slice(0, inner)
            return
        group = self.grid.group
        step = max(group, _TILE // outer // group * group)
        for start in range(0, inner, step):
            yield slice(0, outer), slice(start, min(inner, start + step))

    def scales_of(self, outer: slice, inner: slice, *, of_zeros: bool) -> Array:
        groups = self._groups(inner)
        noted = None if self._noted is None else self._noted.find(outer, groups, of_zeros=of_zeros)
        if self._noted is not None and self._noted.is_done:
            self._noted = None
        if noted is not None:
            return noted
        found = []
        for part in blocks_of(outer.stop - outer.start, 4 * (inner.stop - inner.start)):
            rows = slice(outer.start + part.start, outer.start + part.stop)
            found.append(self.grid.scales(self.constant.read(rows, inner), self.constant.kind))
        return np.concatenate([both[of_zeros] for both in found])

    def _groups(self, inner: slice) -> slice:
        return slice(inner.start // self.grid.group, -(-inner.stop // self.grid.group))

    def channel_scales(self) -> tuple[Array, Array]:
        if self._scales is None:
            constant = self.constant
            blocks = (constant.read(part, EVERY) for part in constant.blocks())
            found = [self.grid.scales(rows, constant.kind) for rows in blocks]
            scales, zeros = zip(*found, strict=True)
            self._scales = np.concatenate(scales), np.concatenate(zeros)
        return self._scales


class _Given(_Source):
    """Passes on steps that were solved."""

    def __init__(self, constant: Constant, grid: Grid, solved: Solution):
        super().__init__(constant, grid)
        self._solved = solved

    def elements(self, outer: slice, inner: slice) -> Array:
        return self._solved.steps.read(outer, inner).astype(self.grid.dtype.numpy())

    def scales_of(self, outer: slice, inner: slice, *, of_zeros: bool) -> Array:
        group = self.grid.group or self.constant.inner
        groups = slice(inner.start // group, -(-inner.stop // group))
        return (self._solved.zeros if of_zeros else self._solved.scales)[outer, groups]

    def channel_scales(self) -> tuple[Array, Array]:
        return self._solved.scales, self._solved.zeros


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _bounded(part: slice, length: int) -> slice:
    start, stop, _ = part.indices(length)
    return slice(start, stop)
