"""Drive a graph that has the cache interface: a prefill, chunks, single tokens, ragged rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.session import Session
from optc.ir.interface import (
    LENGTHS,
    LOGITS,
    NEW_LENGTHS,
    TOKENS,
    cache_ports,
    complete_feeds,
    token_name,
)
from optc.parity.feeds import sample_feeds, token_feeds

__all__ = ["answers_last", "most_likely", "pieces", "ragged_predictions", "run_in_pieces"]

_SINGLE_STEPS = 8


def pieces(tokens: int) -> list[int]:
    """Split a sequence: a prefill of half, two unequal chunks, then single tokens.

    Every way to call the graph is in it: an empty cache, several tokens onto a cache, one token
    onto a cache. A sequence of n < 4 tokens is all single tokens.
    """
    single = min(_SINGLE_STEPS, max(1, tokens // 4))
    prefill = tokens // 2
    rest = tokens - single - prefill
    parts = [prefill, rest - rest // 3, rest // 3]
    return [part for part in parts if part > 0] + [1] * single if tokens >= 4 else [1] * tokens


def answers_last(session: Session) -> bool:
    """Whether a graph gives the logits of one token of each row only."""
    return any(port.name == NEW_LENGTHS for port in session.inputs)


def run_in_pieces(
    session: Session, sample: Feeds, names: Sequence[str], sizes: Sequence[int]
) -> dict[str, Array]:
    """Run one sample piece by piece through the cache.

    Args:
        session: A graph with the cache interface.
        sample: Inputs by name; those that have the axes of the token input [B,S] are cut along S,
            and of an encoder-decoder only the tokens: the encoder's inputs are fed every time.
        names: Outputs wanted; each [B,S,...].
        sizes: Tokens of each piece, S together.

    Returns:
        The outputs of all pieces, put together along S; of logits that are given for the last token
        only, one for each piece.
    """
    feeds = sample_feeds(session.inputs, sample)
    name_of_tokens = token_name(feeds) or TOKENS
    batch, tokens = feeds[name_of_tokens].shape
    last = answers_last(session)
    caches = cache_ports(session.inputs)
    cut = {k: v for k, v in feeds.items() if k in sample and v.shape[:2] == (batch, tokens)}
    if any(cache.is_cross for cache in caches):
        cut = {name_of_tokens: feeds[name_of_tokens]}
    found: dict[str, list[Array]] = {name: [] for name in names}
    start = 0
    for size in sizes:
        feeds |= {name: array[:, start : start + size] for name, array in cut.items()}
        feeds[LENGTHS] = np.full(batch, start, np.int64)
        if last:
            feeds[NEW_LENGTHS] = np.full(batch, size, np.int64)
        outputs = session.run(feeds)
        feeds |= {cache.past: outputs[cache.present] for cache in caches}
        for name in names:
            found[name].append(outputs[name])
        start += size
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


def ragged_predictions(
    session: Session, prompts: Sequence[Array], forced: Sequence[Array]
) -> Iterator[Array]:
    """The most likely token at every position of all continuations, rows run as one batch.

    The prompts are padded on the right for one prefill. From then on `cache_lengths` says how long
    each row really is, so that padding is overwritten and never seen. A row that has come to its
    end repeats its last step at an unchanged length.

    Args:
        session: A graph with the cache interface.
        prompts: Token ids, int64 [n_i].
        forced: Continuations to feed, int64 [m_i], whatever the graph itself predicts.

    Yields:
        Once per step, int64 [B]: the prediction of each row for that step of its continuation.
    """
    caches = cache_ports(session.inputs)
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    outputs = session.run(token_feeds(session.inputs, prompts))
    at = 0 if answers_last(session) else lengths - 1
    yield most_likely(outputs[LOGITS][np.arange(len(prompts)), at])
    for step in range(max(len(row) for row in forced) - 1):
        last = [min(step, max(len(row) - 2, 0)) for row in forced]
        fed = [row[at : at + 1] for row, at in zip(forced, last, strict=True)]
        feeds = token_feeds(session.inputs, fed, lengths + np.array(last, np.int64))
        feeds |= {cache.past: outputs[cache.present] for cache in caches}
        outputs = session.run(complete_feeds(session.inputs, feeds))
        yield most_likely(outputs[LOGITS][: len(prompts), 0])


def most_likely(logits: Array) -> Array:
    """Index of the largest logit [...,V] -> [...], the first of equals; -1 beside a NaN."""
    found: Array = np.where(np.isnan(logits).any(axis=-1), -1, logits.argmax(axis=-1))
    return found.astype(np.int64)
