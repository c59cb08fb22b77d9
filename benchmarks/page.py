"""Put a benchmark's table where its section is, in `docs/performance.md`."""

from __future__ import annotations

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
