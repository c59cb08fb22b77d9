"""What the size of a channel counts as where factors are made of sizes."""

from __future__ import annotations

import numpy as np

from optc.core.context import Array

__all__ = ["counted"]

_DEAD = np.finfo(np.float32).eps


def counted(sizes: Array, faint: float) -> Array:
    """Sizes of channels of an activation, as far as calibration may be believed.

    Of a channel that was dead on all calibration data, nothing is known: it counts as an ordinary
    one, of the median size of the others. Made of what was seen of it, its factor would be so small
    that its weights vanish on their grid, and if it comes to life later, so does what it says.

    Args:
        sizes: Size of each channel, [K], at least one positive. Dead is what is lost in the
            round-off of float32 beside the largest.
        faint: The least that a live channel counts as, relative to the largest.
    """
    largest = sizes.max()
    floored: Array = np.maximum(sizes, faint * largest)
    is_dead = sizes <= _DEAD * largest
    if is_dead.any():
        floored = np.where(is_dead, np.median(floored[~is_dead]), floored)
    return floored
