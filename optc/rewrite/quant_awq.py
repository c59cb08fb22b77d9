"""Activation-aware weight quantisation (AWQ, Lin et al., 2023, arXiv 2306.00978).

Multiplying the weights of an input channel by a factor, and dividing what flows through it by the
same, leaves the products as they are and rounds that channel more finely, at the cost of those that
share its scale. Channels with much flowing through them are worth it. The factors are
magnitude^a, or magnitude^a / weight^(1-a) as in SmoothQuant, where the weights are uneven too; the
exponent a is searched, judged by the error of the products.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optc.core.context import Array
from optc.rewrite.evenly import evenly
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_grid import FLOAT32, Grid
from optc.rewrite.quant_solve import nearest

__all__ = ["EXPONENTS", "equalise"]

EXPONENTS = tuple(step / 20 for step in range(1, 21))
"""The paper's 20 steps from 0 to 1."""

_ROWS = 512
"""Output channels that stand for all while factors are compared: the mean of their errors spreads a
twentieth as far as one of them."""

_FAINT = 1e-4
"""Of the largest mean, the least that one counts as: dead channels would ask for infinite factors.
More than `quant_fit` has for largest magnitudes, as means lie closer together."""


def equalise(
    rows: Array,
    magnitudes: Array,
    inputs: Inputs,
    grid: Grid,
    kind: np.dtype = FLOAT32,
) -> Array:
    """Choose what to multiply the input channels of weights by.

    Args:
        rows: All weights that read the activation, one under the other, float32 [C,K]; of many,
            evenly spaced ones are looked at.
        magnitudes: Mean magnitude of each channel of the activation, [K].
        inputs: What flows into the weights.
        grid: The grid.
        kind: Element type that scales are stored in.

    Returns:
        Factors float32 [K], positive, with geometric mean 1; all 1 where none are better.
    """
    chosen = rows[evenly(len(rows), _ROWS)]
    best = np.ones(rows.shape[1], np.float32)
    error = _error(chosen, best, inputs, grid, kind)
    for factors in _candidates(chosen, magnitudes):
        found = _error(chosen, factors, inputs, grid, kind)
        if found < error:
            best, error = factors, found
    return best


def _candidates(rows: Array, magnitudes: Array) -> Iterator[Array]:
    """Factors by falling trust in the magnitudes alone."""
    if not magnitudes.any() or not rows.any():
        return
    flows, weights = _logs(magnitudes), _logs(np.abs(rows).mean(axis=0))
    for exponent in EXPONENTS:
        for logs in (exponent * flows, exponent * flows - (1 - exponent) * weights):
            yield np.exp(logs - logs.mean()).astype(np.float32)


def _logs(sizes: Array) -> Array:
    """Logarithms; a channel with next to nothing in it counts as a faint one."""
    logs: Array = np.log(np.maximum(sizes.astype(np.float64), _FAINT * sizes.max()))
    return logs


def _error(rows: Array, factors: Array, inputs: Inputs, grid: Grid, kind: np.dtype) -> float:
    """Error of the products with rounded weights, factors divided out."""
    moved = nearest(rows * factors, grid, kind, shrinks=(1.0,)).values(grid)
    return inputs.error(moved / factors - rows)
