"""What this machine has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["memory_bytes"]

# Control groups, version 2 and 1: what a container may use of the machine.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int | None:
    """Bytes of memory that this process may hope for; None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # such as "max"
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min((number for number in found if number > 0), default=None)
