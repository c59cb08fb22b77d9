"""Free memory as the system's files tell it."""

from __future__ import annotations

from pathlib import Path

from optc.core.machine import free_memory_bytes

GIB = 1 << 30
MEMINFO = f"MemTotal: {32 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {20 * GIB // 1024} kB\n"


def system(root: Path, **files: str) -> Path:
    """A root with files, named by their paths with `__` for `/`."""
    for name, text in {"proc__meminfo": MEMINFO, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_is_available_counts_and_not_what_is_free(tmp_path: Path) -> None:
    assert free_memory_bytes(system(tmp_path)) == 20 * GIB


def test_a_control_group_that_leaves_less_counts(tmp_path: Path) -> None:
    group = {
        "sys__fs__cgroup__memory.max": f"{8 * GIB}\n",
        "sys__fs__cgroup__memory.current": f"{7 * GIB}\n",
        "sys__fs__cgroup__memory.stat": f"anon {3 * GIB}\nactive_file {GIB}\ninactive_file {GIB}\n",
    }
    assert free_memory_bytes(system(tmp_path, **group)) == 3 * GIB


def test_so_does_one_of_the_first_version(tmp_path: Path) -> None:
    group = {
        "sys__fs__cgroup__memory__memory.limit_in_bytes": f"{4 * GIB}\n",
        "sys__fs__cgroup__memory__memory.usage_in_bytes": f"{GIB}\n",
        "sys__fs__cgroup__memory__memory.stat": "inactive_file 0\n",
    }
    assert free_memory_bytes(system(tmp_path, **group)) == 3 * GIB


def test_a_control_group_without_a_limit_says_nothing(tmp_path: Path) -> None:
    group = {"sys__fs__cgroup__memory.max": "max\n"}
    assert free_memory_bytes(system(tmp_path, **group)) == 20 * GIB


def test_nothing_is_known_where_nothing_is_said(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) is None
