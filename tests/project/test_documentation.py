"""What the documentation points at exists: files, `make` targets, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optc.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
COMMAND = re.compile(r"(?:^\$ |`)optc ([a-z]+)", re.MULTILINE)
MAKE = re.compile(r"(?:^\$ |`)make ([a-z-]+(?: [a-z-]+)*)", re.MULTILINE)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(COMMAND.findall(text)) <= set(cli.commands)
    named = {target for line in MAKE.findall(text) for target in line.split()}
    assert named <= targets()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_every_make_target_explains_itself() -> None:
    assert set(re.findall(r"^([a-z-]+):.*## \w", MAKEFILE, re.MULTILINE)) == targets()
    assert set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[0].split()) == targets()


def test_continuous_integration_runs_targets() -> None:
    (steps,) = re.findall(
        r"^for step in (.+); do$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE
    )
    assert (
        {"lint", "types", "contracts", "test-ecosystem", "test"} <= set(steps.split()) <= targets()
    )
