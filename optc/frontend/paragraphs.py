"""Sample text: ours, or the user's.

Ours lies in `texts/` and was written for this project: documentation, code with an explanation,
stories, dialogue, recipes, numbers. Judged samples and calibration data never share a paragraph.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from optc.core.errors import SampleError

__all__ = ["Texts", "load_texts", "pieces"]

_PROMPT_WORDS = 10
_JUDGED_EVERY = 3


@dataclasses.dataclass(frozen=True)
class Texts:
    """Text by its use.

    Attributes:
        judged: Paragraphs for judged samples.
        calibration: Paragraphs for passes that calibrate; disjoint from the judged ones.
        prompts: Openings to be continued.
        label: Where it is from, for messages and notes.
    """

    judged: tuple[str, ...]
    calibration: tuple[str, ...]
    prompts: tuple[str, ...]
    label: str


def load_texts(path: Path | None = None) -> Texts:
    """Read sample text.

    Args:
        path: The user's own text, UTF-8, paragraphs separated by blank lines: every third
            paragraph is judged, the others calibrate, and prompts are the openings of judged
            ones. None for ours.

    Raises:
        SampleError: The file cannot be read as text, or has fewer than two paragraphs.
    """
    if path is None:
        folder = files("optc.frontend") / "texts"
        judged, calibration, prompts = (
            _paragraphs((folder / f"{name}.txt").read_text(encoding="utf-8"))
            for name in ("judged", "calibration", "prompts")
        )
        return Texts(judged, calibration, prompts, "built-in text")
    try:
        paragraphs = _paragraphs(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SampleError(f"cannot be read: {reason}", where=str(path)) from error
    if len(paragraphs) < 2:
        remedy = "give at least two paragraphs, separated by a blank line"
        raise SampleError("too little text", where=str(path), remedy=remedy)
    judged = paragraphs[::_JUDGED_EVERY]
    calibration = tuple(p for i, p in enumerate(paragraphs) if i % _JUDGED_EVERY)
    prompts = tuple("".join(_words(p)[:_PROMPT_WORDS]).rstrip() for p in judged)
    return Texts(judged, calibration, prompts, path.name)


def pieces(paragraphs: Sequence[str], words: int) -> list[str]:
    """Cut paragraphs into pieces of `words` words; remainders of less than half are dropped.

    All first pieces come first, then all second ones, so that a few pieces are varied. A paragraph
    that is itself shorter than half is kept: there is nothing else in it.
    """
    cut = [_cut(_words(paragraph), words) for paragraph in paragraphs]
    longest = max(map(len, cut), default=0)
    return [parts[i] for i in range(longest) for parts in cut if i < len(parts)]


def _cut(words: list[str], size: int) -> list[str]:
    parts = [words[i : i + size] for i in range(0, len(words), size)]
    return ["".join(p).rstrip() for i, p in enumerate(parts) if i == 0 or 2 * len(p) >= size]


def _words(paragraph: str) -> list[str]:
    """Words with the white space that follows them, so that code keeps its form."""
    return re.findall(r"\S+\s*", paragraph)


def _paragraphs(text: str) -> tuple[str, ...]:
    blocks = re.split(r"\n[ \t]*\n", text)
    return tuple(block.strip() for block in blocks if block.strip())
