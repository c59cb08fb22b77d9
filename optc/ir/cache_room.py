"""How many tokens a row of some caches can have, for whoever keeps caches between steps."""

from __future__ import annotations

from collections.abc import Sequence

from optc.core.context import Array
from optc.core.errors import SampleError, UnsupportedError
from optc.ir.interface import LENGTHS, CachePort

__all__ = ["check_fits", "row_capacity"]

_NOT_NEGATIVE = "a length is 0 or more"


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


def check_fits(lengths: Array, new: int, capacity: int | None, held: int | None = None) -> None:
    """See that rows have what `cache_lengths` says, and room for `new` more tokens each.

    Kernels do not look: some read and write behind the buffer, others wrap around.

    Args:
        lengths: `cache_lengths`, int64 [B]; rows are named by their place in it.
        new: Tokens that each row gets, padding included: that is written too.
        capacity: Tokens that a row can have; None where there is no limit.
        held: Tokens that a growing past has; None where that says nothing.

    Raises:
        SampleError: A length is negative, or more than the past holds.
        UnsupportedError: A row has no room for its new tokens.
    """
    if not lengths.size:
        return
    row, least = int(lengths.argmin()), int(lengths.min())
    if least < 0:
        raise SampleError(f"row {row} has {least} tokens by '{LENGTHS}'", remedy=_NOT_NEGATIVE)
    row, most = int(lengths.argmax()), int(lengths.max())
    if held is not None and most > held:
        problem = (
            f"row {row} has {most} tokens by '{LENGTHS}', the past that was given holds {held}"
        )
        raise SampleError(problem)
    if capacity is not None and most + new > capacity:
        raise UnsupportedError(
            f"row {row} has {most} tokens and gets {new} more, the cache holds {capacity}",
            remedy="feed fewer tokens, or build with a larger kv:max",
        )
