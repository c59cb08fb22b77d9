"""Nothing in the repository depends on, or talks about, the machine or the way it was written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# Prose that ships as data is not ours to word.
QUOTED = ("optc/frontend/texts/", "LICENSE")

PATTERNS = {
    "an absolute path of somebody's machine": r"(?<![\w.])/(?:root|home|Users|work|opt|mnt)\b(?!:)",
    "a scratch folder": r"(?<![\w.])/tmp/\w",
    "a note to oneself": r"\b(?:[T]ODO|[F]IXME|[X]XX)\b",
    "how the text was made": r"(?i)\b(?:[a]i[- ]generated|[a]s an ai|[a]gents?)\b",
    "a working document": r"\b(?:[F]ACTS|[D]ESIGN|[S]TYLE|[C]ONTRACT)(?:\.md)?\b",
}


@pytest.mark.parametrize("what", PATTERNS)
def test_no_file_mentions(what: str, root: Path, sources: list[str]) -> None:
    pattern = re.compile(PATTERNS[what])
    found = []
    for name in sources:
        path = root / name
        if name.startswith(QUOTED) or path.is_symlink():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an absolute path of somebody's machine", "see /" + "home/me/model.onnx"),
        ("a scratch folder", "written to /" + "tmp/out"),
        ("a note to oneself", "# TO" + "DO later"),
        ("how the text was made", "the age" + "nt wrote"),
        ("a working document", "as in DES" + "IGN 4"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, text: str) -> None:
    assert re.search(PATTERNS[what], text)
