"""Rounded weights made better one number at a time, under the gram of their inputs.

With E = Q - T and a symmetric gram H, the error tr(E H E') is quadratic in every single step, scale
and zero point, so the best value of one, all others held, is known exactly. Going through all of
them never makes the error larger, and finds combinations that rounding column after column, which
cannot take back what it did, has missed.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from optc.core.context import Array
from optc.rewrite.quant_grid import Grid

__all__ = ["Draft", "descend"]

_BLOCK = 64
_NOISE = 1e-6


@dataclasses.dataclass
class Draft:
    """Weights while they are being rounded; input channels first, so that one is contiguous.

    Attributes:
        grid: The grid.
        target: What to come close to, float32 [K,C].
        offsets: Steps less their zero points, float32 [K,C].
        scales: float32 [G,C], numbers of the type `kind`.
        zeros: float32 [G,C], whole numbers.
        kind: Element type that scales are stored in.
    """

    grid: Grid
    target: Array
    offsets: Array
    scales: Array
    zeros: Array
    kind: np.dtype

    @classmethod
    def of(cls, target: Array, grid: Grid, scales: Array, zeros: Array) -> Draft:
        """A draft of weights [C,K] with scales and zero points [C,G], all steps zero."""
        turned = np.ascontiguousarray(target.T, np.float32)
        parts = [np.ascontiguousarray(part.T, np.float32) for part in (scales, zeros)]
        return cls(grid, turned, np.zeros_like(turned), parts[0], parts[1], scales.dtype)

    def steps(self) -> Array:
        """Steps [C,K] of the draft: int32, or float32 for E4M3."""
        if self.grid.is_float:
            return np.ascontiguousarray(self.offsets.T)
        zeros = np.concatenate([self.zeros[self.group(k)][None] for k in range(len(self.offsets))])
        return np.ascontiguousarray((self.offsets + zeros).T, np.int32)

    def ranges(self) -> tuple[Array, Array]:
        """Scales of type `kind` and zero points int32, [C,G]."""
        scales = np.ascontiguousarray(self.scales.T, self.kind)
        return scales, np.ascontiguousarray(self.zeros.T, np.int32)

    def group(self, channel: int) -> int:
        """Which scale an input channel has."""
        return channel // self.grid.group if self.grid.group else 0

    def round(self, channel: int, wish: Array) -> Array:
        """Take the steps nearest to `wish` [C] in one input channel; what they stand for, [C]."""
        scale = self.scales[self.group(channel)]
        self.offsets[channel] = self.nearest(channel, wish)
        value: Array = self.offsets[channel] * scale
        return value

    def nearest(self, channel: int, wish: Array) -> Array:
        """Offsets of the steps nearest to `wish` [C]."""
        group = self.group(channel)
        taken: Array = wish / self.scales[group]
        first, last = self.grid.limits
        if self.grid.is_float:
            np.clip(taken, first, last, out=taken)
            return taken.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        zero = self.zeros[group]
        np.rint(taken, out=taken)
        np.clip(taken, first - zero, last - zero, out=taken)
        return taken

    def errors(self) -> Array:
        """What the draft stands for less its target, [K,C]."""
        moved = np.empty_like(self.target)
        size = self.grid.group or len(moved)
        for group, start in enumerate(range(0, len(moved), size)):
            part = slice(start, start + size)
            moved[part] = self.offsets[part] * self.scales[group] - self.target[part]
        return moved


def descend(draft: Draft, gram: Array, sweeps: int) -> None:
    """Improve steps, scales and zero points in place.

    Args:
        draft: What to improve.
        gram: Symmetric and positive definite, float32 [K,K].
        sweeps: How often to go through all of them.
    """
    errors = draft.errors()
    size = draft.grid.group or _BLOCK
    for _ in range(sweeps):
        for start in range(0, len(gram), size):
            part = slice(start, min(start + size, len(gram)))
            slopes = gram[part] @ errors  # half the gradient
            slopes = _move_steps(draft, gram, errors, slopes, part)
            if draft.grid.group:
                _move_range(draft, gram[part, part], errors[part], slopes, part)
        if not draft.grid.group:
            _move_range(draft, gram, errors, gram @ errors, slice(0, len(gram)))


def _move_steps(draft: Draft, gram: Array, errors: Array, slopes: Array, part: slice) -> Array:
    """The best step of each input channel in turn; the slopes after that, [B,C]."""
    inner = gram[part, part]
    deltas = np.zeros_like(slopes)
    for place, channel in enumerate(range(part.start, part.stop)):
        slope = slopes[place] + inner[place, :place] @ deltas[:place]
        curve = inner[place, place]
        scale = draft.scales[draft.group(channel)]
        held = draft.offsets[channel]
        found = draft.nearest(channel, held * scale - slope / curve)
        delta = (found - held) * scale
        wins = _gain(slope, curve, delta) > 0
        draft.offsets[channel] = np.where(wins, found, held)
        deltas[place] = np.where(wins, delta, 0)
    errors[part] += deltas
    slopes += inner @ deltas
    return slopes


def _move_range(draft: Draft, inner: Array, errors: Array, slopes: Array, part: slice) -> None:
    """The best scale of a group [B,C], then its best zero point."""
    group = draft.group(part.start)
    slopes = slopes + inner @ _move_scale(draft, inner, errors, slopes, (group, part))
    if not draft.grid.symmetric:
        _move_zero(draft, inner, errors, slopes, (group, part))


def _move_scale(
    draft: Draft, inner: Array, errors: Array, slopes: Array, place: tuple[int, slice]
) -> Array:
    """How far the weights move, [B,C]."""
    group, part = place
    offsets = draft.offsets[part]
    slope = np.einsum("bc,bc->c", offsets, slopes)
    curve = np.einsum("bc,bc->c", offsets, inner @ offsets)
    held = draft.scales[group]
    with np.errstate(over="ignore"):  # a scale too large for its type is refused next
        found = (held - slope / np.where(curve > 0, curve, 1)).astype(draft.kind)
    sound = np.isfinite(found) & (found >= np.finfo(draft.kind).tiny)
    delta = np.where(sound, found.astype(np.float32) - held, 0)
    delta = np.where(_gain(slope, curve, delta) > 0, delta, 0)
    draft.scales[group] = held + delta
    moved: Array = offsets * delta
    errors += moved
    return moved


def _move_zero(
    draft: Draft, inner: Array, errors: Array, slopes: Array, place: tuple[int, slice]
) -> None:
    """Steps stay, so that all weights of the group move by the same whole number of steps."""
    group, part = place
    scale, zero = draft.scales[group], draft.zeros[group]
    slope, curve = slopes.sum(axis=0), inner.sum()
    first, last = draft.grid.limits
    found = np.clip(zero + np.rint(slope / (scale * curve)), first, last)
    delta = (zero - found) * scale
    wins = _gain(slope, curve, delta) > 0
    moved = np.where(wins, zero - found, 0)
    draft.zeros[group] = zero - moved
    draft.offsets[part] += moved
    errors += moved * scale


def _gain(slope: Array, curve: Array, delta: Array) -> Array:
    """What the error loses when one number moves by `delta`, less what may be rounding noise."""
    bend = curve * delta * delta
    gain: Array = -2 * slope * delta - bend - _NOISE * bend
    return gain
