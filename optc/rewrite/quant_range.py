"""How large a magnitude the last step of an activation's grid should stand for.

Per tensor and symmetric: `x ~ limit / 127 * q`. Each method weighs what is clipped against how
finely the rest is rounded in its own way:

- `minmax`: nothing is clipped.
- `percentile`: a fixed share is clipped.
- `entropy`: the distribution after rounding says most about the one before (the Kullback-Leibler
  divergence of histograms, as in TensorRT; Migacz, "8-bit inference with TensorRT", GTC 2017).
- `mse`: the mean squared error is smallest.
"""

from __future__ import annotations

import numpy as np

from optc.core.context import Array
from optc.rewrite.quant_histogram import Histogram

__all__ = ["METHODS", "PERCENTILE", "divergence", "reach"]

METHODS = ("minmax", "percentile", "entropy", "mse")

PERCENTILE = 99.99
"""The share of magnitudes that `percentile` does not clip, in percent."""

_LEVELS = 128  # magnitudes of int8, with zero
_COARSE = 2048  # bins of the talk's histograms
_STRIDE = 4  # of them, 1/512 of the range: neighbouring ranges differ by less than a step of int8
_FINEST = 1 / 500  # of the largest magnitude: outliers may be 500 times as large as the rest
_TRIED = 256  # ranges from there to all of it, each 2.5 % more than the one before
_BATCH = 16  # of them at once, to bound memory: 16 * 2^14 bins of float64 are 2 MB


def reach(seen: Histogram, method: str) -> float:
    """The magnitude that the last step should stand for.

    Args:
        seen: Magnitudes of the activation on calibration data.
        method: One of `METHODS`.

    Returns:
        At most the largest magnitude seen; 0 where that is 0.

    Raises:
        ValueError: There is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"no method '{method}' among {', '.join(METHODS)}")
    if not seen.end or method == "minmax":
        return seen.largest
    if method == "percentile":
        found = _percentile(seen)
    else:
        found = _entropy(seen) if method == "entropy" else _mse(seen)
    return min(found, seen.largest)


def _percentile(seen: Histogram) -> float:
    """Linear within the bin where the share is reached."""
    below = np.concatenate([[0], np.cumsum(seen.counts)])
    return float(np.interp(PERCENTILE / 100 * below[-1], below, seen.edges))


def _entropy(seen: Histogram) -> float:
    """Where the smallest divergence is, tried after every few of those of 2048 bins with counts."""
    counts = seen.counts.reshape(_COARSE, -1).sum(axis=1).astype(np.float64)
    ends = np.flatnonzero(counts) + 1
    ends = np.append(ends[ends >= _LEVELS][:-1:_STRIDE], ends[-1])
    if len(ends) == 1:
        return seen.largest
    # exact zeros stay zero whatever the range is, and would drown all else
    counts[0] = counts[1]
    divergences = [divergence(counts, int(end)) for end in ends]
    return float(seen.end * ends[int(np.argmin(divergences))] / _COARSE)


def divergence(counts: Array, end: int) -> float:
    """What is lost when the first bins are all that is kept, at one level for each of int8.

    Args:
        counts: float64 [N].
        end: How many bins are kept, at least 128.

    Returns:
        The divergence of the kept bins, the clipped counts added to the last, from the same at 128
        levels, whose counts are spread over those of their bins that are not empty. Infinite where
        nothing stands for what was clipped.
    """
    kept = counts[:end]
    clipped = kept.copy()
    clipped[-1] += counts[end:].sum()
    starts = np.arange(_LEVELS) * end // _LEVELS
    filled = np.add.reduceat((kept > 0).astype(np.float64), starts)
    levels = np.add.reduceat(kept, starts) / np.maximum(filled, 1)
    spread = np.repeat(levels, np.diff(np.append(starts, end))) * (kept > 0)
    held = clipped > 0
    if not held.any() or (spread[held] == 0).any():
        return np.inf
    parts = clipped[held] / clipped.sum()
    return float((parts * np.log(parts * spread.sum() / spread[held])).sum())


def _mse(seen: Histogram) -> float:
    """Exact for magnitudes spread evenly within their bins."""
    limits = seen.largest * np.geomspace(_FINEST, 1, _TRIED)
    filled = np.flatnonzero(seen.counts)
    low, high = seen.edges[filled], np.minimum(seen.edges[filled + 1], seen.largest)
    density = seen.counts[filled] / np.maximum(high - low, np.finfo(np.float64).tiny)
    errors = []
    for start in range(0, _TRIED, _BATCH):
        some = limits[start : start + _BATCH, None]
        errors.append((_integral(high, some) - _integral(low, some)) @ density)
    return float(limits[int(np.argmin(np.concatenate(errors)))])


def _integral(values: Array, limits: Array) -> Array:
    """Squared error of rounding, integrated from 0 to each value [N], for each limit [L,1].

    In units of a step, rounding to n errs by (t-n)^2: 1/12 for every whole step, and r^3/3 for the
    rest r. Beyond the limit the error is the distance to it.
    """
    scales = limits / (_LEVELS - 1)
    inside = np.minimum(values, limits) / scales
    whole = np.rint(inside)
    beyond = np.maximum(values - limits, 0)
    integral: Array = scales**3 * (whole / 12 + (inside - whole) ** 3 / 3) + beyond**3 / 3
    return integral
