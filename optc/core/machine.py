"""What this machine has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["free_memory_bytes", "memory_bytes"]

# Control groups, version 2 and 1: what a container may use of the machine.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# What they have used of it, and where they say how much of that are pages of files.
_USED = {
    _LIMITS[0]: ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    _LIMITS[1]: (
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
}
_OF_FILES = ("inactive_file", "active_file")


def memory_bytes() -> int | None:
    """Bytes of memory that this process may hope for; None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # such as "max"
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min((number for number in found if number > 0), default=None)


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process could still have: free, or of files that need not stay in memory.

    Args:
        root: Where the system's files are found.

    Returns:
        The least of what the system and each control group leave; None where neither says.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = _read(root, "/proc/meminfo").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for limit, (used, parts) in _USED.items():
        with contextlib.suppress(OSError, ValueError, IndexError):  # "max": no limit
            most = int(_read(root, limit))
            stat = dict(line.split() for line in _read(root, parts).splitlines())
            given_back = sum(int(stat.get(key, 0)) for key in _OF_FILES)
            found.append(max(0, most - int(_read(root, used)) + given_back))
    return min(found, default=None)


def _read(root: Path, path: str) -> str:
    return (root / path.lstrip("/")).read_text(encoding="ascii")
