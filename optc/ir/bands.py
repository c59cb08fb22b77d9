"""Masks as arrays: what is visible in one, and the bands that attention kernels know."""

from __future__ import annotations

import numpy as np

from optc.core.context import Array
from optc.ir.thresholds import HIDDEN

__all__ = ["visible_band", "visible_part"]


def visible_band(count: int, window: int, keys: int | None = None, *, causal: bool = True) -> Array:
    """The causal mask [count, keys], aligned at the end, within `window` keys when not 0."""
    total = count if keys is None else keys
    last, j = np.arange(count)[:, None] + total - count, np.arange(total)[None]
    return ((j <= last) | (not causal)) & ((j > last - window) | (window == 0))


def visible_part(mask: Array) -> Array | None:
    """A mask as booleans, True where visible; None when it holds anything but 0 and hidden."""
    if mask.dtype == np.bool_:
        return mask
    hidden = mask <= HIDDEN
    return ~hidden if np.all(hidden | (mask == 0)) else None
