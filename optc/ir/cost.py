"""How large an evaluation at many tokens would be, told from two at few."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from optc.ir.probe import ProbeFailure

__all__ = ["MOST_ELEMENTS", "Cost"]

_FEW, _MORE = 8, 16
MOST_ELEMENTS = 1 << 24
"""So many elements are evaluated where it matters."""


class Cost:
    """What it costs to evaluate something, by the number of tokens.

    Each value on the way grows as a power of the number; one that is constant now may be overtaken
    by one that is not, so all are looked at.

    Args:
        measure: Evaluates at a number of tokens; elements of each value on the way, by name. If it
            raises `ProbeFailure` at few tokens, only as few are affordable.
    """

    def __init__(self, measure: Callable[[int], Mapping[str, int]]):
        self._powers: list[tuple[int, float]] | None
        try:
            few, more = measure(_FEW), measure(_MORE)
        except ProbeFailure:
            self._powers = None
        else:
            self._powers = [(size, _power(few.get(name, 0), size)) for name, size in more.items()]

    def affords(self, count: int, most: int = MOST_ELEMENTS) -> bool:
        """Whether no value on the way has more than `most` elements, 2^24 if it is not said."""
        if self._powers is None:
            return count <= _MORE
        ratio = count / _MORE
        return all(size * ratio**power <= most for size, power in self._powers)


def _power(few: int, more: int) -> float:
    if not few or not more:
        return 0.0 if few == more else 2.0
    return max(0.0, math.log(more / few, _MORE / _FEW))
