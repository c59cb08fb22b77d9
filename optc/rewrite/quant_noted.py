"""What came up about a weight's scales while its steps were computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from optc.core.context import Array
from optc.rewrite.quant_grid import Grid

__all__ = ["Noted"]


@dataclasses.dataclass
class Noted:
    """Scales and zeros that came up when steps were computed, until they are asked for.

    A model is written tensor by tensor: steps, then their scales, then their zeros. Kept until
    then they save two more passes over the weight; kept for longer, of all weights, they would be
    a tenth of it.

    Attributes:
        values: Scales [C,G], and zeros as bytes [C,G].
        is_known: Which are there, [C,G].
        waited_for: How many of each have not been asked for yet.
    """

    values: tuple[Array, Array]
    is_known: Array
    waited_for: list[int]

    @classmethod
    def nothing(cls, shape: tuple[int, int], kind: np.dtype[Any], grid: Grid) -> Noted:
        """Nothing is known yet."""
        count = shape[0] * shape[1]
        values = np.empty(shape, kind), np.empty(shape, np.uint8)
        return cls(values, np.zeros(shape, bool), [count, 0 if grid.symmetric else count])

    def note(self, outer: slice, groups: slice, scales: Array, zeros: Array) -> None:
        """Keep those of one block."""
        for kept, given in zip(self.values, (scales, zeros), strict=True):
            kept[outer, groups] = given
        self.is_known[outer, groups] = True

    def find(self, outer: slice, groups: slice, *, of_zeros: bool) -> Array | None:
        """Those asked for; None if not all are known."""
        if not self.is_known[outer, groups].all():
            return None
        found = self.values[of_zeros][outer, groups]
        self.waited_for[of_zeros] -= found.size
        return found

    @property
    def is_done(self) -> bool:
        """Whether all was asked for."""
        return max(self.waited_for) <= 0
