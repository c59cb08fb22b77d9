"""How much damping the second moments of an activation need, judged on samples not learnt from.

Rounding that follows a gram to the letter also follows what is chance in it: with few samples for
many channels the products get worse than with the nearest steps on anything else. How much to damp
depends on the activation, so it is found by rounding a few channels with what one half of the
samples says and looking at the error on the other half.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from optc.core.context import Array
from optc.rewrite.evenly import evenly
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_solve import solve

__all__ = ["DAMPINGS", "Moments", "learnt"]

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_ROWS = 128
_FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over rows of an activation: Y of the graph as it will be, X of the original one.

    Attributes:
        gram: Y'Y [K,K].
        cross: Y'X [K,K]; None where X is Y.
    """

    gram: Array
    cross: Array | None = None

    @classmethod
    def of(cls, moved: Array, exact: Array | None = None) -> Moments:
        """Of rows Y [R,K], and X [R,K]."""
        return cls(moved.T @ moved, None if exact is None else moved.T @ exact)

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both."""
        if self.cross is None or other.cross is None:
            return Moments(self.gram + other.gram)
        return Moments(self.gram + other.gram, self.cross + other.cross)

    def error(self, held: Array, rows: Array) -> float:
        """|Y Q' - X W'|^2 of weights Q in the place of W, both [C,K], but for a constant."""
        cross = self.gram if self.cross is None else self.cross
        return float(np.vdot(held @ self.gram, held)) - 2 * float(np.vdot(held @ cross, rows))


def learnt(
    halves: tuple[Moments, Moments],
    rows: Array,
    grid: Grid,
    kind: np.dtype = _FLOAT32,
    *,
    dampings: tuple[float, ...] = DAMPINGS,
) -> Inputs:
    """The inputs of all samples, with the damping that is best from one half to the other.

    Args:
        halves: Moments on each half of the samples.
        rows: Weights that read the activation, float32 [C,K]; some of them are looked at.
        grid: Their grid.
        kind: Element type that scales are stored in.
        dampings: What to choose from, rising; tried until the error rises, too.
    """
    first, second = halves
    chosen = rows[evenly(len(rows), _ROWS)]
    best, least = dampings[0], np.inf
    for damping in dampings:
        inputs = Inputs.of(first.gram, first.cross, damping=damping)
        held = solve(chosen, inputs, grid, kind, rounds=0).values(grid)
        error = second.error(held, chosen)
        if error >= least:
            break
        best, least = damping, error
    whole = first + second
    return Inputs.of(whole.gram, whole.cross, damping=best)
