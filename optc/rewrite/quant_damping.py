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
from optc.rewrite.quant_grid import FLOAT32, Grid
from optc.rewrite.quant_solve import solve

__all__ = ["DAMPINGS", "Moments", "damped"]

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""From GPTQ's own upwards, in half decades: of 0.01, 0.1, 0.3 and 1, products of SmolLM2-135M
came out best with 0.3 or 1 from 2048 tokens and with 0.1 or 0.3 from 8192, by 1 to 5 % of the
squared error from one of these three to the next."""

_ROWS = 128
"""Output channels that are rounded for it: each damping tried costs so much of a whole solution."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over rows of an activation: Y of the graph as it will be, X of the original one.

    Attributes:
        gram: Y'Y [K,K].
        cross: Y'X [K,K].
    """

    gram: Array
    cross: Array

    @classmethod
    def of(cls, moved: Array, exact: Array) -> Moments:
        """Of rows Y [R,K], and X [R,K]."""
        return cls(moved.T @ moved, moved.T @ exact)

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both."""
        return Moments(self.gram + other.gram, self.cross + other.cross)

    def error(self, held: Array, rows: Array) -> float:
        """|Y Q' - X W'|^2 of weights Q in the place of W, both [C,K], but for a constant."""
        return float(np.vdot(held @ self.gram, held)) - 2 * float(np.vdot(held @ self.cross, rows))


def damped(
    halves: tuple[Moments, Moments],
    rows: Array,
    grid: Grid,
    kind: np.dtype = FLOAT32,
) -> Inputs:
    """The inputs of all samples, with the damping that is best from one half to the other.

    Args:
        halves: Moments on each half of the samples.
        rows: Weights that read the activation, float32 [C,K]; some of them are looked at.
        grid: Their grid.
        kind: Element type that scales are stored in.
    """
    first, second = halves
    chosen = rows[evenly(len(rows), _ROWS)]
    best, least = DAMPINGS[0], np.inf
    for damping in DAMPINGS:
        inputs = Inputs.of(first.gram, first.cross, damping=damping)
        held = solve(chosen, inputs, grid, kind, sweeps=0).values(grid)
        error = second.error(held, chosen)
        if error >= least:
            break
        best, least = damping, error
    whole = first + second
    return Inputs.of(whole.gram, whole.cross, damping=best)
