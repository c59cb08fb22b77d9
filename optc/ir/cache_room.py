"""How many tokens a row of some caches can have, for whoever keeps caches between steps."""

from __future__ import annotations

from collections.abc import Sequence

from optc.core.context import Array
from optc.core.errors import UnsupportedError
from optc.ir.interface import CachePort

__all__ = ["check_fits", "row_capacity"]


def row_capacity(caches: Sequence[CachePort], tokens: int) -> int:
    """Tokens that a row can have: the smallest fixed cache's, else `tokens`.

    Raises:
        UnsupportedError: A fixed cache holds fewer than `tokens`.
    """
    fixed = [c.capacity for c in caches if c.capacity is not None and not c.is_cross]
    capacity = min(fixed, default=tokens)
    if tokens > capacity:
        raise UnsupportedError(f"the engine's cache holds {capacity} tokens, not {tokens}")
    return capacity


def check_fits(lengths: Array, new: int, capacity: int) -> None:
    """See that rows of `lengths` [B] have room for `new` more tokens each.

    Raises:
        UnsupportedError: The longest has not.
    """
    longest = int(lengths.max(initial=0)) + new
    if longest > capacity:
        raise UnsupportedError(
            f"{longest} tokens do not fit in a cache of {capacity}",
            remedy="ask for fewer new tokens, or for a larger cache",
        )
