"""How often each magnitude was seen, counted as samples stream by."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from optc.core.context import Array

__all__ = ["BINS", "Histogram"]

BINS = 1 << 14
"""Enough for outliers a thousand times as large as what surrounds them to leave bins for it."""


@dataclasses.dataclass
class Histogram:
    """Counts of magnitudes in bins of equal width, which doubles as larger ones come.

    The end of the last bin is always a power of two, so that what is counted does not depend on the
    order in which magnitudes come.

    Attributes:
        counts: int64 [BINS].
        end: Where the last bin ends; 0 before anything but zeros was seen.
        largest: Largest magnitude seen.
    """

    counts: Array = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    end: float = 0.0
    largest: float = 0.0

    def add(self, values: Array) -> None:
        """Count the magnitudes of values of any shape.

        Raises:
            ValueError: One is not finite.
        """
        if not values.size:
            return
        sizes = np.abs(values.reshape(-1).astype(np.float32, copy=False))
        largest = float(sizes.max())
        if not math.isfinite(largest):
            raise ValueError("magnitudes of values that are not finite cannot be counted")
        self._widen(largest)
        # through float64, as the quotient may be too large for float32 before it is cut off
        bins = sizes * np.float64(BINS / self.end) if self.end else np.zeros(len(sizes))
        bins = np.minimum(bins, BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=BINS)

    @property
    def edges(self) -> Array:
        """Where bins begin and end, float64 [BINS+1]."""
        return np.linspace(0, self.end, BINS + 1)

    def _widen(self, largest: float) -> None:
        """Double the bins until `largest` has one."""
        self.largest = max(self.largest, largest)
        if largest <= self.end:
            return
        end = 2.0 ** math.ceil(math.log2(largest))
        for _ in range(round(math.log2(end / self.end)) if self.end else 0):
            self.counts = _halved(self.counts)
        self.end = end


def _halved(counts: Array) -> Array:
    """Neighbours put together; the upper half of the bins is free after that."""
    halved: Array = np.zeros_like(counts)
    halved[: BINS // 2] = counts.reshape(-1, 2).sum(axis=1)
    return halved
