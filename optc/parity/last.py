"""What of a sample can be held against a graph that answers for the last token of each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.core.context import Array, Feeds
from optc.ir.interface import DECODER_TOKENS, LOGITS, NEW_LENGTHS, TOKENS
from optc.ir.reference import Sample

__all__ = ["at_ends", "at_last", "is_partial"]

_Case = tuple[dict[str, Array], dict[str, Array], dict[str, Array]]


def is_partial(sample: Sample, outputs: Feeds) -> bool:
    """Whether the sample has logits [B,S,V] and the graph gave [B,1,V] of them."""
    wanted = sample.outputs.get(LOGITS)
    return wanted is not None and wanted.ndim == 3 and outputs[LOGITS].shape[1] < wanted.shape[1]


def at_last(sample: Sample, outputs: Feeds, feeds: Feeds) -> _Case:
    """Expected and actual logits [B,1,V] of each row's last token, and those tokens [B,1]."""
    name = DECODER_TOKENS if DECODER_TOKENS in feeds else TOKENS
    rows, at = np.arange(len(feeds[name])), feeds[NEW_LENGTHS] - 1
    expected = sample.outputs[LOGITS][rows, at][:, None]
    return {LOGITS: expected}, {LOGITS: outputs[LOGITS]}, {name: feeds[name][rows, at][:, None]}


def at_ends(expected: Feeds, sizes: Sequence[int]) -> dict[str, Array]:
    """The outputs that a run in pieces of these sizes gives; of logits, those at their ends."""
    cut = dict(expected)
    if LOGITS in cut:
        cut[LOGITS] = cut[LOGITS][:, np.cumsum(sizes) - 1]
    return cut
