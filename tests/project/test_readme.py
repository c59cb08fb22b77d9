"""Snippets in the documentation that are marked `<!-- run -->` do what they show.

A `python` block runs to its end. A `console` block runs its `$ ` lines, each of which must succeed
and print the lines written under it, in that order; a line `...` stands for anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MARKED = re.compile(r"^<!-- run -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    where: str
    language: str
    text: str


def snippets() -> list[Snippet]:
    found = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]:
        text = path.read_text(encoding="utf-8")
        for match in MARKED.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            where = f"{path.relative_to(ROOT)}:{line}"
            found.append(Snippet(where, match[1], match[2]))
    return found


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """`optc` on the path and importable, installed or not."""
    command = tmp_path / "bin" / "optc"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m optc.cli.main "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What the command prints on a terminal: both streams."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def steps(text: str) -> list[tuple[str, list[str]]]:
    """Commands of a console block, each with the lines shown under it."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def assert_shown(shown: list[str], printed: str) -> None:
    """Every shown line is printed, in order; without a `...` between them, adjacent ones too."""
    pattern = "\n".join(".*?" if line.strip() == "..." else re.escape(line) for line in shown)
    assert re.search(pattern, printed, re.DOTALL), printed


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: snippet.where)
def test_marked_snippets_run(snippet: Snippet, tmp_path: Path, environment: dict[str, str]) -> None:
    if snippet.language == "python":
        run([sys.executable, "-W", "error", "-c", snippet.text], tmp_path, environment)
        return
    assert snippet.language == "console", f"cannot run {snippet.language}"
    for command, shown in steps(snippet.text):
        assert_shown(shown, run(["bash", "-c", command], tmp_path, environment))


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        (["one", "two"], "one\ntwo\nthree\n", True),
        (["one", "three"], "one\ntwo\nthree\n", False),
        (["one", "...", "three"], "one\ntwo\nthree\n", True),
        (["3 (of 4)"], "3 (of 4)\n", True),
    ],
)
def test_shown_lines_are_really_compared(shown: list[str], printed: str, fits: bool) -> None:
    if fits:
        assert_shown(shown, printed)
        return
    with pytest.raises(AssertionError):
        assert_shown(shown, printed)


@pytest.mark.parametrize("path", ["README.md", "docs/write-a-pass.md"])
def test_the_pages_people_start_with_have_snippets_that_run(path: str) -> None:
    assert any(snippet.where.startswith(path) for snippet in snippets())
