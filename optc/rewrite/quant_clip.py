"""Scales and zero points that clip a little where that pays.

The extremes of a group set a step for all of its weights. A range shrunk by a factor clips the few
at its ends and rounds all others more finely. The factor is searched per group, judged by squared
error, in which each input channel counts as much as the power of what flows through it (the clip
search of AWQ, Lin et al., 2023, arXiv 2306.00978, with the diagonal of the gram for its samples).
From the best, the scale that fits the steps in the least-squares sense is tried once more.
"""

from __future__ import annotations

import numpy as np

from optc.core.context import Array
from optc.rewrite.quant_grid import FLOAT32, Grid

__all__ = ["SHRINKS", "clipped"]

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_REFITS = 2


def clipped(
    rows: Array,
    grid: Grid,
    kind: np.dtype = FLOAT32,
    *,
    power: Array | None = None,
    shrinks: tuple[float, ...] = SHRINKS,
) -> tuple[Array, Array]:
    """Scales and zero points from searched ranges.

    Args:
        rows: Weights, float32 [C,K].
        grid: The grid.
        kind: Element type that scales are stored in.
        power: How much a squared error counts in each input channel, [K]; the same when None.
        shrinks: What the extremes of a group may be shrunk by; the first is the start.

    Returns:
        Scales [C,G] of type `kind` and zero points int32 [C,G], of no larger error than those of
        the first.
    """
    count = np.ones(rows.shape[1]) if power is None else power
    weights = _normed(count).astype(np.float32)
    low, high = grid.extremes(rows)
    tried = [grid.scales_between(low * s, high * s, kind) for s in map(np.float32, shrinks)]
    best, error = tried[0], _error(rows, grid, tried[0], weights)
    for found in tried[1:]:
        best, error = _better(rows, grid, weights, (best, error), found)
    for _ in range(_REFITS):
        found = (_refit(rows, grid, best, weights), best[1])
        best, error = _better(rows, grid, weights, (best, error), found)
    return best


def _normed(count: Array) -> Array:
    """Powers with mean 1; where nothing flows at all, every channel counts."""
    mean = count.mean()
    return count / mean if mean > 0 else np.ones_like(count)


def _starts(grid: Grid, inner: int) -> Array:
    return np.arange(0, inner, grid.group or inner)


def _error(rows: Array, grid: Grid, found: tuple[Array, Array], weights: Array) -> Array:
    """Weighted squared error of each group, [C,G]."""
    moved = grid.values(grid.steps(rows, *found), *found)
    moved -= rows
    np.square(moved, out=moved)
    moved *= weights
    error: Array = np.add.reduceat(moved, _starts(grid, rows.shape[1]), axis=1)
    return error


def _better(
    rows: Array,
    grid: Grid,
    weights: Array,
    held: tuple[tuple[Array, Array], Array],
    found: tuple[Array, Array],
) -> tuple[tuple[Array, Array], Array]:
    """Of two choices the better one, group by group, and its error."""
    (scales, zeros), error = held
    its_error = _error(rows, grid, found, weights)
    wins = its_error < error
    chosen = (np.where(wins, found[0], scales), np.where(wins, found[1], zeros))
    return chosen, np.where(wins, its_error, error)


def _refit(rows: Array, grid: Grid, found: tuple[Array, Array], weights: Array) -> Array:
    """The scales that fit the steps best; those that are no positive normal numbers stay."""
    scales, zeros = found
    offsets = grid.values(grid.steps(rows, *found), np.ones_like(scales), zeros)
    starts = _starts(grid, rows.shape[1])
    above = np.add.reduceat(rows * offsets * weights, starts, axis=1)
    below = np.add.reduceat(np.square(offsets) * weights, starts, axis=1)
    with np.errstate(over="ignore"):  # a scale too large for its type is refused next
        fitted = (above / np.where(below > 0, below, 1)).astype(scales.dtype)
    sound = np.isfinite(fitted) & (fitted >= np.finfo(scales.dtype).tiny)
    refitted: Array = np.where(sound, fitted, scales)
    return refitted
