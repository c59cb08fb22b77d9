"""A few of many, evenly spaced."""

from __future__ import annotations

import numpy as np

from optc.core.context import Array

__all__ = ["evenly"]


def evenly(length: int, count: int) -> Array:
    """Indices of `count` of `length` things, the first and the last among them; int64, rising.

    Args:
        length: How many there are.
        count: How many to take; all of them where there are no more.
    """
    chosen: Array = np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))
    return chosen
