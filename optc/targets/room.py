"""See that new tokens fit in a fixed cache, before a runtime sees them."""

from __future__ import annotations

from collections.abc import Sequence

from optc.core.context import Feeds
from optc.core.errors import SampleError, UnsupportedError
from optc.core.session import Port
from optc.ir.interface import LENGTHS, cache_ports, token_count

__all__ = ["check_room"]


def check_room(inputs: Sequence[Port], feeds: Feeds) -> None:
    """See that every row has room for its new tokens, padding included: that is written too.

    Args:
        inputs: What the graph takes.
        feeds: All of it, checked already.

    Raises:
        UnsupportedError: A row has not; the message names the limit.
        SampleError: A length is negative.
    """
    caches = [cache for cache in cache_ports(inputs) if not cache.is_cross]
    if not caches or LENGTHS not in feeds or not feeds[LENGTHS].size:
        return
    least = int(feeds[LENGTHS].min())
    if least < 0:
        raise SampleError(f"the input '{LENGTHS}' has a negative length, {least}")
    sizes = [c.capacity for c in caches if c.capacity is not None]
    if not sizes:
        return
    room, wanted = min(sizes), feeds[LENGTHS] + token_count(feeds)
    if wanted.size and wanted.max() > room:
        row = int(wanted.argmax())
        raise UnsupportedError(
            f"row {row} would have {wanted[row]} tokens, the cache holds {room}",
            remedy=f"feed fewer tokens, or build with a larger kv:max than {room}",
        )
