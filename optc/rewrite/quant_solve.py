"""Rounding weights so that their products stay what they were.

1. Ranges: scales and zero points of each group by a search over shrunk ranges (`quant_clip`).
2. GPTQ (Frantar et al., 2022, arXiv 2210.17323): column after column is rounded to the nearest
   step, after it has been moved to make up for the errors of the columns before. Written as in
   QuIP (Chee et al., 2023, arXiv 2307.13304, LDLQ), which needs one Cholesky factor and no inverse.
   Columns go by falling power; as groups have their scales beforehand, they stay contiguous.
3. Descent (`quant_descent`): twice through all steps, scales and zero points, one at a time; a move
   is taken only where the error falls.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from optc.core.context import Array
from optc.rewrite.quant_clip import SHRINKS, clipped
from optc.rewrite.quant_descent import Draft, descend
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_grid import FLOAT32, Grid

__all__ = ["SWEEPS", "Solved", "nearest", "solve"]

SWEEPS = 2
"""How often descent goes through everything. Measured on products of SmolLM2-135M with 576 and 1536
inputs, in groups of 32 and 128: once takes up to 2 % off the squared error that GPTQ leaves on
tokens not seen, twice up to 4 %, five times up to 5 %; every time costs the same."""
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Solved:
    """Rounded weights.

    Attributes:
        steps: int32 [C,K]; float32 for E4M3.
        scales: [C,G], of the type that they are stored in.
        zeros: int32 [C,G].
    """

    steps: Array
    scales: Array
    zeros: Array

    def values(self, grid: Grid) -> Array:
        """What the steps stand for, float32 [C,K]."""
        return grid.values(self.steps, self.scales, self.zeros)


def nearest(
    rows: Array,
    grid: Grid,
    kind: np.dtype = FLOAT32,
    *,
    power: Array | None = None,
    shrinks: tuple[float, ...] = SHRINKS,
) -> Solved:
    """Round to the nearest step of searched ranges.

    Args:
        rows: Weights, float32 [C,K].
        grid: The grid.
        kind: Element type that scales are stored in.
        power: Mean square of each input channel, [K]; all the same when None.
        shrinks: What ranges may be shrunk by.
    """
    scales, zeros = clipped(rows, grid, kind, power=power, shrinks=shrinks)
    return Solved(grid.steps(rows, scales, zeros), scales, zeros)


def solve(
    rows: Array,
    inputs: Inputs,
    grid: Grid,
    kind: np.dtype = FLOAT32,
    *,
    sweeps: int = SWEEPS,
) -> Solved:
    """Round so that the error of the products is small.

    Args:
        rows: Weights, float32 [C,K].
        inputs: What flows into them.
        grid: The grid.
        kind: Element type that scales are stored in.
        sweeps: How often descent goes through everything after GPTQ; 0 for not at all.
    """
    target = inputs.target(rows)
    power = inputs.gram.diagonal()
    scales, zeros = clipped(target, grid, kind, power=power)
    draft = Draft.of(target, grid, scales, zeros)
    _feed_back(draft, inputs)
    descend(draft, inputs.gram, sweeps)
    return Solved(draft.steps(), *draft.ranges())


def _feed_back(draft: Draft, inputs: Inputs) -> None:
    """GPTQ: set the offsets of all columns; errors of a block reach later blocks in one product."""
    order, feedback = inputs.order, inputs.feedback
    errors = np.zeros_like(draft.target)  # [K,C], rows in `order`
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        wanted = draft.target[order[start:stop]]
        wanted -= feedback[:start, start:stop].T @ errors[:start]
        for column in range(start, stop):
            inner = slice(start, column)
            wish = wanted[column - start] - feedback[inner, column] @ errors[inner]
            channel = order[column]
            errors[column] = draft.round(channel, wish) - draft.target[channel]
