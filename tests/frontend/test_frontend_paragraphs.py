"""Sample text: built in, or the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from optc.core.errors import SampleError
from optc.frontend.paragraphs import load_texts, pieces


def test_our_text_is_varied_and_its_parts_are_disjoint() -> None:
    texts = load_texts()
    paragraphs = [*texts.judged, *texts.calibration]
    assert len(paragraphs) >= 24
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(80 <= len(p.split()) <= 160 for p in paragraphs)
    assert len(texts.prompts) >= 8
    assert not any(prompt in p for prompt in texts.prompts for p in paragraphs)


def test_text_of_the_users_own_is_parted(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffeins\r\n\r\nzwei\r\nund mehr\r\n  \r\n\r\ndrei\r\n\r\nvier".encode())
    texts = load_texts(path)
    assert texts.judged == ("eins", "vier")
    assert texts.calibration == ("zwei\nund mehr", "drei")
    assert texts.prompts == ("eins", "vier")
    assert texts.label == "text.txt"


@pytest.mark.parametrize("content", [b"", b"one paragraph only", b"\xff\xfe\x00"])
def test_text_that_cannot_be_used(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(SampleError) as error:
        load_texts(path)
    assert str(path) in str(error.value)


def test_pieces_come_from_every_paragraph_before_a_second_from_one() -> None:
    assert pieces(("a b c d e", "f g", "h"), 2) == ["a b", "f g", "h", "c d", "e"]


def test_short_remainders_are_dropped_and_code_keeps_its_form() -> None:
    text = "def f(x):\n    return x + 1"
    assert pieces((text,), 100) == [text]
    assert pieces((text,), 4) == ["def f(x):\n    return x", "+ 1"]
    assert pieces((text,), 5) == ["def f(x):\n    return x +"]
