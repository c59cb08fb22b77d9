"""The texts of `quant_quality.py`: two to judge by, and others to calibrate with.

    python benchmarks/quant_texts.py [FOLDER]        (default: build/quant/smollm2)

* `docs`: the Python documentation's sources, which are prose, code and markup;
* `prose`: The Debian Administrator's Handbook, without its markup.

Both come in Debian packages, fetched with `apt-get download` and unpacked, not installed. A
sequence is a piece of one page. Paragraphs that occur more than once are taken once: repeated
boilerplate is easy to predict and hides what a quantiser damages.

Calibration takes other pages of the documentation and other books (Debian's policy and developer's
reference). No paragraph of it, nor of what `optc export` calibrates with, is in what is judged.
"""

from __future__ import annotations

import argparse
import dataclasses
import html.parser
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quant_model import FOLDER, ROOT

DEBIAN = ROOT / "build" / "quant" / "debian"
PACKAGES = ("python3.11-doc", "debian-handbook", "debian-policy", "developers-reference")
SHARE = "usr/share"
TOKENS = 512
JUDGED, CALIBRATION = 24, 16
# One page of the documentation in three is judged.
JUDGED_EVERY = 3


@dataclasses.dataclass(frozen=True)
class Page:
    """A page's name and its paragraphs, in order."""

    name: str
    paragraphs: tuple[str, ...]


class Handbook(html.parser.HTMLParser):
    """Collects the text of `<div class="para">`, one paragraph each, white space collapsed."""

    BLOCKS = frozenset(("div", "p", "pre", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "td"))

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._divs: list[bool] = []
        self._words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A block ends the paragraph before it."""
        if tag in self.BLOCKS or tag.startswith("h"):
            self._end()
        if tag == "div":
            self._divs.append(("class", "para") in attrs)

    def handle_endtag(self, tag: str) -> None:
        """So does the end of a block."""
        if tag in self.BLOCKS or tag.startswith("h"):
            self._end()
        if tag == "div" and self._divs:
            self._divs.pop()

    def handle_data(self, data: str) -> None:
        """Text counts inside a paragraph."""
        if self._divs and self._divs[-1]:
            self._words.append(data)

    def _end(self) -> None:
        text = " ".join("".join(self._words).split())
        self._words.clear()
        if text:
            self.paragraphs.append(text)


def handbook_page(text: str) -> tuple[str, ...]:
    """The paragraphs of a page of the handbook."""
    parser = Handbook()
    parser.feed(text)
    return tuple(parser.paragraphs)


def source_page(text: str) -> tuple[str, ...]:
    """The blocks of a page in reStructuredText, with their markup and indentation."""
    blocks = re.split(r"\n[ \t]*\n", text)
    return tuple(block.strip("\n").rstrip() for block in blocks if block.strip())


def key(paragraph: str) -> str:
    """What makes two paragraphs the same: their words."""
    return " ".join(paragraph.split())


def without_repeats(pages: Iterable[Page], seen: set[str]) -> Iterator[Page]:
    """Pages without the paragraphs in `seen`, to which theirs are added."""
    for page in pages:
        kept = []
        for paragraph in page.paragraphs:
            if key(paragraph) not in seen:
                seen.add(key(paragraph))
                kept.append(paragraph)
        yield Page(page.name, tuple(kept))


def number(name: str) -> int:
    """A number that depends on the name alone: what chance would be, the same everywhere."""
    return zlib.crc32(name.encode())


def rows(
    pages: Sequence[Page], encode: Callable[[str], Sequence[int]], count: int, joint: str
) -> np.ndarray:
    """Token ids, int64 [count, TOKENS], of as many pages as there are.

    Pages come in the order of their numbers, and each gives the piece that its number picks:
    beginnings of pages are then no more frequent than they are in the text. Second pieces are
    taken only where there are too few pages.

    Raises:
        ValueError: There is too little text.
    """
    cut = {page.name: _pieces(encode(joint.join(page.paragraphs)), page.name) for page in pages}
    order = sorted(cut, key=number)
    longest = max(map(len, cut.values()), default=0)
    found = [cut[name][turn] for turn in range(longest) for name in order if turn < len(cut[name])]
    if len(found) < count:
        raise ValueError(f"the text gives {len(found)} sequences, {count} are needed")
    return np.array(found[:count], np.int64)


def _pieces(ids: Sequence[int], name: str) -> list[Sequence[int]]:
    whole = [ids[i : i + TOKENS] for i in range(0, len(ids) - TOKENS + 1, TOKENS)]
    start = number(name) % max(len(whole), 1)
    return [*whole[start:], *whole[:start]]


def fetch(folder: Path = DEBIAN) -> Path:
    """Unpack the Debian packages into `folder`, unless they are there."""
    for package in PACKAGES:
        if (folder / package / SHARE).is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _run(["apt-get", "download", package], folder)
            (deb,) = folder.glob(f"{package}_*.deb")
            _run(["dpkg-deb", "-x", str(deb), package], folder)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"{package} could not be fetched ({error}): unpack it into {folder / package}")
    return folder


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)


def read(folder: Path, pattern: str, parse: Callable[[str], tuple[str, ...]]) -> list[Page]:
    """Pages of the files that match, in the order of their names."""
    paths = sorted(folder.glob(pattern))
    return [
        Page(str(path.relative_to(folder)), parse(path.read_text(encoding="utf-8")))
        for path in paths
    ]


def judged_pages(folder: Path = DEBIAN) -> dict[str, list[Page]]:
    """The pages of each text that is judged, each paragraph once."""
    seen = built_in()
    docs = [page for page in _docs(folder) if number(page.name) % JUDGED_EVERY == 0]
    prose = read(folder / "debian-handbook", "usr/share/doc/*/html/en-US/*.html", handbook_page)
    return {
        "docs": list(without_repeats(docs, seen)),
        "prose": list(without_repeats(prose, seen)),
    }


def calibration_pages(folder: Path = DEBIAN) -> dict[str, list[Page]]:
    """The pages to calibrate with; no paragraph of theirs is judged."""
    judged = judged_pages(folder).values()
    seen = {key(paragraph) for pages in judged for page in pages for paragraph in page.paragraphs}
    docs = [page for page in _docs(folder) if number(page.name) % JUDGED_EVERY]
    prose = [
        *read(folder / "debian-policy", "usr/share/doc/*/policy.html/_sources/*.txt", source_page),
        *read(folder / "developers-reference", "usr/share/*/_sources/*.txt", source_page),
    ]
    return {
        "docs": list(without_repeats(docs, seen)),
        "prose": list(without_repeats(prose, seen)),
    }


def _docs(folder: Path) -> list[Page]:
    where = folder / "python3.11-doc"
    return read(where, "usr/share/doc/python3.11/html/_sources/**/*.txt", source_page)


def built_in() -> set[str]:
    """The paragraphs that `optc export` samples: judging them would be judging the calibration."""
    texts = sorted((ROOT / "optc" / "frontend" / "texts").glob("*.txt"))
    return {key(p) for path in texts for p in source_page(path.read_text(encoding="utf-8"))}


def prepare(folder: Path = FOLDER) -> Path:
    """Write what to judge by, `texts/docs.npy` and `texts/prose.npy`, int64 [JUDGED, TOKENS].

    Beside them is `calibration.npz`, the others' sequences in the form of a reference, as
    `optc build --calibration` takes it.

    Returns:
        The folder `texts`.
    """
    where = folder / "texts"
    if (where / "texts.json").is_file():
        return where
    where.mkdir(parents=True, exist_ok=True)
    source = fetch()
    encode = _encoder(folder / "hf" / "tokenizer.json")
    facts: dict[str, Any] = {"packages": sorted(path.name for path in source.glob("*.deb"))}
    for name, pages in judged_pages(source).items():
        np.save(where / f"{name}.npy", rows(pages, encode, JUDGED, "\n\n"))
    calibration = [rows(p, encode, CALIBRATION, "\n\n") for p in calibration_pages(source).values()]
    # Alternating, so that whoever takes the first few gets both kinds.
    both = np.stack(calibration, axis=1).reshape(-1, TOKENS)
    write_calibration(both, folder / "onnx" / "reference.npz", where / "calibration.npz")
    (where / "texts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return where


def write_calibration(ids: np.ndarray, reference: Path, path: Path) -> None:
    """Sequences [N,S] to calibrate with; a reference has a judged sample, so one is taken over."""
    from optc.ir.reference import load_reference, save_reference

    given = load_reference(reference)
    first = given.samples[0]
    names = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds = [{name: names[name][i : i + 1] for name in first.inputs} for i in range(len(ids))]
    note = f"{given.note}; calibration: {len(ids)} sequences of {ids.shape[1]} tokens"
    whole = dataclasses.replace(given, samples=(first,), calibration=tuple(feeds), note=note)
    save_reference(whole, path)


def _encoder(path: Path) -> Callable[[str], Sequence[int]]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="the model's folder")
    print(prepare(parser.parse_args().folder))
