"""See that new tokens fit in a cache, before a runtime sees them."""

from __future__ import annotations

from collections.abc import Sequence

from optc.core.context import Feeds
from optc.core.session import Port
from optc.ir.cache_room import check_fits
from optc.ir.interface import LENGTHS, cache_ports, token_count

__all__ = ["check_room"]


def check_room(inputs: Sequence[Port], feeds: Feeds) -> None:
    """See that every row has the tokens that it is said to have, and room for its new ones.

    Args:
        inputs: What the graph takes.
        feeds: All of it, checked already.

    Raises:
        UnsupportedError: A row has no room; the message names the row, its length and the limit.
        SampleError: A length is negative, or more than a growing past holds.
    """
    caches = [cache for cache in cache_ports(inputs) if not cache.is_cross]
    if not caches or LENGTHS not in feeds:
        return
    room = min((c.capacity for c in caches if c.capacity is not None), default=None)
    held = min((feeds[c.past].shape[2] for c in caches if c.capacity is None), default=None)
    check_fits(feeds[LENGTHS], token_count(feeds), room, held)
