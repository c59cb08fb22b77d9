"""Exported files with PyTorch's answers: made once each, shared by all who ask."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from exporting import Feeds, answer, export, export_by_tracing, feeds_for, make
from families import FAMILIES
from family import Family
from optimisers import rewrite
from spellings import Spelling

__all__ = ["Case", "Exports", "on_words"]

# Sizes to answer for: runtimes that take tables of batch 1 for granted fail at 2 and 3.
SIZES = (
    {"batch": 2, "length": 19, "target": 11},
    {"batch": 1, "length": 12, "target": 9},
    {"batch": 3, "length": 10, "target": 14},
)
_LEFT = {"batch": 2, "length": 9, "target": 6}
_TRACED_WITH = {"batch": 2, "length": 7, "target": 5}


@dataclasses.dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        name: Name of the family.
        family: The family.
        spelling: How it is written.
        path: The file.
        samples: Inputs, and what PyTorch answers.
    """

    name: str
    family: Family
    spelling: Spelling
    path: Path
    samples: tuple[tuple[Feeds, np.ndarray], ...]


def on_words(answer: np.ndarray, feeds: Feeds) -> np.ndarray:
    """What is answered for words: what a model says about padding means nothing.

    A query on the left of all words sees none, and implementations differ in what comes of it.
    """
    if "attention_mask" not in feeds or "decoder_input_ids" in feeds:
        return answer
    return answer[feeds["attention_mask"] == 1]


class Exports:
    """Files by family and spelling."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: dict[tuple[str, Spelling], Case] = {}

    def case(self, name: str, spelling: Spelling) -> Case:
        """The file, exported on first use."""
        key = name, spelling
        if key not in self._made:
            self._made[key] = self._rewritten(*key) if spelling.tool else self._export(*key)
        return self._made[key]

    def _rewritten(self, name: str, spelling: Spelling) -> Case:
        plain = dataclasses.replace(spelling, tool="")
        case = self.case(name, plain)
        return dataclasses.replace(case, spelling=spelling, path=rewrite(case.path, spelling.tool))

    def _export(self, name: str, spelling: Spelling) -> Case:
        family = FAMILIES[name]
        dtype = torch.float16 if spelling.half else torch.float32
        module = make(family, spelling.attention, dtype)
        sizes = SIZES[:1] if spelling.fixed else SIZES
        feeds = [feeds_for(family, dtype, **size) for size in sizes]
        if "attention_mask" in family.inputs and not spelling.fixed:
            feeds.append(feeds_for(family, dtype, left=True, **_LEFT))
        samples = tuple((f, answer(module, f)) for f in feeds)
        path = self.folder / f"{name}-{spelling}.onnx"
        if spelling.traced:
            export_by_tracing(module, feeds_for(family, dtype, **_TRACED_WITH), path)
        else:
            given = feeds[0] if spelling.fixed else feeds_for(family, dtype, **_TRACED_WITH)
            export(module, given, path, spelling.opset, static=spelling.fixed)
        return Case(name, family, spelling, path, samples)
