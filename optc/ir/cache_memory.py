"""How much memory caches take, said before it is taken.

What is too much would otherwise end in the middle of a comparison, in a runtime's words for an
allocation that failed, or with the process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.core.errors import NotEnoughMemoryError
from optc.core.machine import memory_bytes
from optc.ir.interface import CachePort

__all__ = ["cache_bytes", "check_memory", "gigabytes", "too_much"]


def cache_bytes(caches: Sequence[CachePort], rows: int, tokens: int | None = None) -> int:
    """Bytes of a decoder's own keys and values.

    Args:
        caches: The caches of a graph; what an encoder gives is not counted.
        rows: Number of rows.
        tokens: Tokens of each row; None for all that a cache of fixed size holds.
    """
    own = [cache for cache in caches if not cache.is_cross]
    return sum(
        rows * c.heads * c.dim * np.dtype(c.dtype).itemsize * _tokens(c, tokens) for c in own
    )


def _tokens(cache: CachePort, tokens: int | None) -> int:
    return (cache.capacity or 0) if tokens is None else tokens


def check_memory(caches: Sequence[CachePort], rows: int, *, copies: int = 1) -> None:
    """See that the machine has memory for caches of fixed sizes.

    Args:
        caches: The caches of a graph.
        rows: Number of rows.
        copies: 2 where the caches before a call and those after it are there at a time.

    Raises:
        NotEnoughMemoryError: It has not.
    """
    there = memory_bytes()
    if there is not None and cache_bytes(caches, rows) * copies > there:
        raise too_much(caches, rows, copies=copies)


def too_much(
    caches: Sequence[CachePort], rows: int, tokens: int | None = None, *, copies: int = 1
) -> NotEnoughMemoryError:
    """The error for caches that do not fit in memory.

    Args:
        caches: The caches of a graph.
        rows: Number of rows.
        tokens: Tokens of each row; those of a cache of fixed size count more.
        copies: See `check_memory`.
    """
    fixed = min((c.capacity for c in caches if c.capacity and not c.is_cross), default=None)
    count = gigabytes(cache_bytes(caches, rows, fixed or tokens))
    what = f"kv:max={fixed}" if fixed else f"a cache of {tokens} tokens"
    whom = "one row" if rows == 1 else f"{rows} rows"
    twice = ", before a call and after it" if copies > 1 else ""
    there = memory_bytes()
    has = "" if there is None else f", this machine has {gigabytes(there)}"
    remedy = "choose a smaller max" if fixed else "ask for fewer tokens"
    return NotEnoughMemoryError(f"{what} needs {count} for {whom}{twice}{has}", remedy=remedy)


def gigabytes(count: int) -> str:
    """Bytes for people, `51.2 GB`."""
    return f"{count / 1e9:.3g} GB" if count < 1e12 else f"{count / 1e9:,.0f} GB"
