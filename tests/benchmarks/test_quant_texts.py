"""The texts that quantised models are judged by: no repeats, nothing that was calibrated with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quant_texts
from quant_contenders import PEERS
from quant_embeddings import chosen
from quant_texts import TOKENS, Page, handbook_page, rows, source_page, without_repeats

from optc.ir.reference import Reference, Sample, load_reference, save_reference


def test_a_paragraph_is_taken_once_however_it_is_wrapped() -> None:
    pages = [Page("a", ("one\n two", "three")), Page("b", ("one two", "four", "four"))]
    kept = list(without_repeats(pages, {"three"}))
    assert kept == [Page("a", ("one\n two",)), Page("b", ("four",))]


def test_a_page_of_the_handbook_is_its_paragraphs_without_markup() -> None:
    page = """<html><body><h2>A title</h2><div class="para">
        One <code>command</code>
        of &eacute;lan. <div class="note"><div class="para">Within.</div></div> After.
        </div><ul><li>no paragraph</li></ul></body></html>"""
    assert handbook_page(page) == ("One command of élan.", "Within.", "After.")


def test_a_page_of_sources_keeps_its_markup_and_indentation() -> None:
    assert source_page("Title\n=====\n\n  code::\n\n\n   x = 1\n") == (
        "Title\n=====",
        "  code::",
        "   x = 1",
    )


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_sequences_come_from_as_many_pages_as_there_are() -> None:
    pages = [Page(name, (name * (2 * TOKENS),)) for name in "abc"]
    found = rows(pages, encode, 4, "\n\n")
    assert found.shape == (4, TOKENS)
    assert len(set(found[:3, 0])) == 3
    assert found[3, 0] == found[0, 0]


def test_too_little_text_is_said() -> None:
    with pytest.raises(ValueError, match="gives 1 sequences, 2 are needed"):
        rows([Page("a", ("x" * (TOKENS + 5),)), Page("b", ("short",))], encode, 2, "\n\n")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Each package with a few pages; `shared` is in all, and a sample of ours is in two."""
    builtin = sorted(quant_texts.built_in())[0]
    docs = "python3.11-doc/usr/share/doc/python3.11/html/_sources/library"
    texts = {f"{docs}/{i}.rst.txt": f"page {i}\n\nshared\n\n{builtin}" for i in range(12)}
    book = "debian-handbook/usr/share/doc/debian-handbook/html/en-US/one.html"
    paragraphs = ("shared", builtin, "book")
    texts[book] = "".join(f'<div class="para">{text}</div>' for text in paragraphs)
    policy = "debian-policy/usr/share/doc/debian-policy/policy.html/_sources/ch.rst.txt"
    texts[policy] = "rule\n\nshared\n\nbook\n\npage 3"
    texts["developers-reference/usr/share/developers-reference/_sources/a.rst.txt"] = "rule\n\nmore"
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_no_paragraph_is_in_two_texts(packages: Path) -> None:
    judged = quant_texts.judged_pages(packages)
    calibration = quant_texts.calibration_pages(packages)
    found = [
        p
        for pages in (*judged.values(), *calibration.values())
        for page in pages
        for p in page.paragraphs
    ]
    assert len(found) == len(set(found))
    ours = quant_texts.built_in() & set(found)  # calibrated with, as by default, but not judged
    expected = {*(f"page {i}" for i in range(12)), "shared", "book", "rule", "more"}
    assert set(found) == expected | ours
    assert ours.isdisjoint(
        p for pages in judged.values() for page in pages for p in page.paragraphs
    )
    assert (
        len({page.name for page in judged["docs"]} & {page.name for page in calibration["docs"]})
        == 0
    )
    assert judged["docs"]
    assert calibration["docs"]


def test_calibration_data_is_what_a_build_takes(tmp_path: Path) -> None:
    ids = np.arange(6).reshape(1, 6)
    sample = Sample({"input_ids": ids}, {"logits": np.zeros((1, 6, 3), np.float32)})
    save_reference(Reference("pytorch", (sample, sample)), tmp_path / "reference.npz")
    wanted = np.arange(20).reshape(2, 10)
    quant_texts.write_calibration(wanted, tmp_path / "reference.npz", tmp_path / "out.npz")
    found = load_reference(tmp_path / "out.npz")
    assert [feeds["input_ids"].tolist() for feeds in found.calibration] == [
        [r] for r in wanted.tolist()
    ]
    assert len(found.samples) == 1


def test_peers_read_the_calibration_data_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    from calibration import sequences

    sample = Sample({"input_ids": np.zeros((1, 2), np.int64)}, {"logits": np.zeros((1, 2, 3))})
    feeds = tuple({"input_ids": np.array([[i, i + 1]])} for i in range(12))  # 10 sorts before 2
    save_reference(Reference("pytorch", (sample,), feeds), tmp_path / "reference.npz")
    found = sequences(tmp_path / "reference.npz")
    assert [row["input_ids"].tolist() for row in found] == [[[i, i + 1]] for i in range(12)]


def test_sentences_are_whole_different_and_of_a_fitting_length() -> None:
    long = "This one has a few more words in it. Too short. Is this one a question of six words?"
    paragraphs = [
        long,
        "This one has a few more words in it.",
        "And this one ends without a full stop",
    ]
    assert sorted(chosen(paragraphs, 10)) == [
        "Is this one a question of six words?",
        "This one has a few more words in it.",
    ]
