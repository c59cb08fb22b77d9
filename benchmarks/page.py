"""Put a benchmark's table where its section is, in `docs/performance.md`."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def replace_section(page: str, title: str, body: str) -> str:
    """The page with the section under `title` (a line `## ...`) replaced, or added at its end."""
    text = f"{title}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if not pattern.search(page):
        return f"{page.rstrip()}\n\n{text}"
    return pattern.sub(lambda _: f"{text}\n", page).rstrip() + "\n"


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What a table was measured on: the processor's name, where the system tells it, and cores."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = named[1].strip() if named else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
