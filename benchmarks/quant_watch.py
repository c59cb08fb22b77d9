"""Run a command and see how long it took and how much memory it and its children had (Linux)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROCESSES = Path("/proc")
LIMIT = 3600.0
"""Most seconds of one build."""

_EVERY = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True)
class Watched:
    """What a command took.

    Attributes:
        code: Its exit code.
        seconds: From its start to its end.
        cpu: Processor seconds, its children's included.
        rss: Largest resident memory of the whole tree at one time, bytes.
    """

    code: int
    seconds: float
    cpu: float
    rss: int


def watch(
    command: Sequence[str], log: Path, environment: Mapping[str, str], limit: float = LIMIT
) -> Watched:
    """Run `command`; what it says goes into `log`.

    Raises:
        RuntimeError: It took longer than `limit` seconds, and was ended.
    """
    before, started, peak = _children_cpu(), time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=dict(environment),
        )  # fmt: skip
        while process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            if time.perf_counter() - started > limit:
                process.kill()
                process.wait()
                raise RuntimeError(f"it took longer than {limit:.0f} s")
            time.sleep(_EVERY)
    seconds = time.perf_counter() - started
    return Watched(process.returncode, seconds, _children_cpu() - before, peak)


def tree_rss(root: int) -> int:
    """Resident bytes of a process and all below it; what they share is counted for each."""
    found = dict(_processes())
    wanted, total = [root], 0
    while wanted:
        process = wanted.pop()
        total += _rss(process)
        wanted += [child for child, parent in found.items() if parent == process]
    return total


def _processes() -> list[tuple[int, int]]:
    """Each process with its parent."""
    pairs = []
    for path in PROCESSES.iterdir():
        if path.name.isdigit() and (fields := _stat(path)):
            pairs.append((int(path.name), int(fields[1])))
    return pairs


def _stat(path: Path) -> list[str]:
    """Fields of `stat` after the program's name, which may hold spaces; none if it has ended."""
    try:
        return (
            (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return []


def _rss(process: int) -> int:
    try:
        return int((PROCESSES / str(process) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
