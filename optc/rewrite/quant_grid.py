"""The steps that a quantised weight may take: how many bits, and what shares a scale.

`w ~ scale * (step - zero)`. A scale belongs to a whole output channel, or to a group of `group`
input channels of it. Weights are seen here as [C,K]: output channels, input channels. Scales are
rounded to the element type that they are stored in before steps are taken.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optc.core.context import Array

__all__ = ["FLOAT32", "Grid"]

FLOAT32 = np.dtype(np.float32)
"""What scales are stored in unless told otherwise."""
_RUNS = 4096  # of 32 float32: half a megabyte, which stays near the processor


@dataclasses.dataclass(frozen=True)
class Grid:
    """One kind of grid.

    Attributes:
        bits: 4 or 8.
        group: Input channels that share a scale; 0 for all of them.
        symmetric: Whether the step that stands for zero is 0 everywhere.
        is_float: Steps are the numbers of E4M3 (OCP 8-bit floating point, 2023), not integers.
    """

    bits: int = 8
    group: int = 0
    symmetric: bool = True
    is_float: bool = False

    @property
    def dtype(self) -> ir.DataType:
        """Element type of the stored steps."""
        if self.is_float:
            return ir.DataType.FLOAT8E4M3FN
        if self.bits == 8:
            return ir.DataType.INT8 if self.symmetric else ir.DataType.UINT8
        return ir.DataType.INT4 if self.symmetric else ir.DataType.UINT4

    @property
    def limits(self) -> tuple[int, int]:
        """First and last step."""
        if self.is_float:
            return -448, 448
        last = 2**self.bits - 1
        if not self.symmetric:
            return 0, last
        # eight bits leave out -128, so that products of two steps fit what kernels sum in pairs
        return (-127, 127) if self.bits == 8 else (-8, 7)

    def groups(self, inner: int) -> int:
        """How many scales a channel with `inner` inputs has."""
        return -(-inner // self.group) if self.group else 1

    def scales(self, rows: Array, kind: np.dtype = FLOAT32) -> tuple[Array, Array]:
        """Scales and zero points from the extremes of each group.

        Args:
            rows: Weights, float32 [C,K].
            kind: Element type that scales are stored in.

        Returns:
            Scales [C,G] of type `kind`, positive and normal numbers, and zero points int32 [C,G].
        """
        return self.scales_between(*self.extremes(rows), kind)

    def scales_between(self, low: Array, high: Array, kind: np.dtype) -> tuple[Array, Array]:
        """The same from what the first and the last step are to stand for, float32 [C,G] each."""
        first, last = self.limits
        if self.symmetric:
            raw = np.maximum(high / last, low / (first if self.bits == 4 else -last))
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            raw = (high - low) / (last - first)
        scales = raw.astype(kind)
        # a group of zeros, or of numbers too faint for the type, becomes the zeros it nearly is
        scales = np.where(scales < np.finfo(kind).tiny, kind.type(1), scales)
        if self.symmetric:
            return scales, np.zeros(scales.shape, np.int32)
        zeros = np.rint(first - low / scales.astype(np.float32))
        return scales, np.clip(zeros, first, last).astype(np.int32)

    def steps(self, rows: Array, scales: Array, zeros: Array) -> Array:
        """The nearest steps.

        Args:
            rows: Weights, float32 [C,K].
            scales: [C,G].
            zeros: [C,G].

        Returns:
            int32 [C,K]; for E4M3, float32 [C,K].
        """
        taken = self._nearest(rows, scales, zeros)
        if self.is_float:
            return taken.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return taken.astype(np.int32)

    def elements(self, rows: Array, scales: Array, zeros: Array) -> Array:
        """The same in the type that they are stored in, 4 bits one to a byte."""
        taken, kind = self._nearest(rows, scales, zeros), self.dtype.numpy()
        if self.is_float:
            return taken.astype(kind)
        # by way of whole bytes, which vector instructions convert to
        found = taken.astype(np.int8 if self.symmetric else np.uint8)
        return found if self.bits == 8 else (found.view(np.uint8) & 15).view(kind)

    def _nearest(self, rows: Array, scales: Array, zeros: Array) -> Array:
        """The nearest steps as float32 [C,K]; of E4M3, what is still to be rounded to them."""
        groups = _Groups.of(rows, self.group)
        if groups is None:
            return self._nearest_apart(rows, scales, zeros)
        taken = groups.view(rows) / groups.beside(scales.astype(np.float32))
        if not self.is_float:
            np.rint(taken, out=taken)
        if not self.symmetric:
            taken += groups.beside(zeros.astype(np.float32))
        return groups.whole(np.clip(taken, *self.limits, out=taken))

    def _nearest_apart(self, rows: Array, scales: Array, zeros: Array) -> Array:
        """The same where the last group is cut short, or there are no groups."""
        inner = rows.shape[1]
        taken = rows / self.spread(scales.astype(np.float32), inner)
        if not self.is_float:
            np.rint(taken, out=taken)
        if not self.symmetric:
            taken += self.spread(zeros, inner)
        return np.clip(taken, *self.limits, out=taken)

    def values(self, steps: Array, scales: Array, zeros: Array) -> Array:
        """What steps stand for, float32 [C,K]."""
        inner = steps.shape[1]
        moved = steps.astype(np.float32)
        if not self.symmetric:
            moved -= self.spread(zeros, inner)
        moved *= self.spread(scales.astype(np.float32), inner)
        return moved

    def rounded(self, rows: Array, kind: np.dtype = FLOAT32) -> Array:
        """`rows` [C,K] on the grid of their own extremes, float32."""
        scales, zeros = self.scales(rows, kind)
        return self.values(self.steps(rows, scales, zeros), scales, zeros)

    def spread(self, parts: Array, inner: int) -> Array:
        """[C,G] as [C,K], or as [C,1] where a channel has one scale."""
        return np.repeat(parts, self.group, axis=1)[:, :inner] if self.group else parts

    def bytes(self, outer: int, inner: int, scale_bytes: int = 4) -> int:
        """Bytes of a stored weight: steps, scales, and zero points if there are any."""
        parts = outer * self.groups(inner)
        zeros = 0 if self.symmetric else -(-parts * self.bits // 8)
        return -(-outer * inner * self.bits // 8) + parts * scale_bytes + zeros

    def extremes(self, rows: Array) -> tuple[Array, Array]:
        """Smallest and largest number of each group, [C,G] each."""
        if not self.group:
            return rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        groups = _Groups.of(rows, self.group)
        if groups is not None:
            return groups.extremes(rows)
        starts = np.arange(0, rows.shape[1], self.group)
        low: Array = np.minimum.reduceat(rows, starts, axis=1)
        high: Array = np.maximum.reduceat(rows, starts, axis=1)
        return low, high


@dataclasses.dataclass(frozen=True)
class _Groups:
    """An array [C,K] seen as groups of K, as it lies in memory: what is neighbours stays so.

    Attributes:
        outer: C.
        count: G, groups of a channel.
        length: Inputs of a group.
        turned: Whether K comes first in memory: weights [K,C], seen as [C,K].
    """

    outer: int
    count: int
    length: int
    turned: bool

    @classmethod
    def of(cls, rows: Array, length: int) -> _Groups | None:
        """None where there are no groups, or they do not divide K."""
        outer, inner = rows.shape
        turned = not rows.flags.c_contiguous
        if not length or inner % length or (turned and not rows.flags.f_contiguous):
            return None
        return cls(outer, inner // length, length, turned)

    def view(self, rows: Array) -> Array:
        """[C,K] as [C,G,length], or [G,length,C]."""
        if self.turned:
            return rows.T.reshape(self.count, self.length, self.outer)
        return rows.reshape(self.outer, self.count, self.length)

    def beside(self, parts: Array) -> Array:
        """[C,G], to be broadcast against the view."""
        return parts.T[:, None, :] if self.turned else parts[:, :, None]

    def whole(self, view: Array) -> Array:
        """The view as [C,K] again."""
        if self.turned:
            return view.reshape(-1, self.outer).T
        return view.reshape(self.outer, -1)

    def extremes(self, rows: Array) -> tuple[Array, Array]:
        """Smallest and largest of each group, float32 [C,G]."""
        view = self.view(rows)
        if self.turned:
            return view.min(axis=1).T, view.max(axis=1).T
        # numpy reduces short runs slowly; turned around, a piece at a time, they are long ones
        runs = view.reshape(-1, self.length)
        low, high = np.empty(len(runs), rows.dtype), np.empty(len(runs), rows.dtype)
        for start in range(0, len(runs), _RUNS):
            part = slice(start, start + _RUNS)
            turned = np.ascontiguousarray(runs[part].T)
            turned.min(axis=0, out=low[part])
            turned.max(axis=0, out=high[part])
        return low.reshape(self.outer, -1), high.reshape(self.outer, -1)
