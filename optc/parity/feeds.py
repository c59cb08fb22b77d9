"""Make the feeds of one run: from a sample, or from rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.errors import SampleError, UnsupportedError
from optc.core.session import Port
from optc.ir.interface import LENGTHS, NEW_LENGTHS, TOKENS, cache_ports, complete_feeds
from optc.parity.padding import valid_positions

__all__ = ["capacity", "sample_feeds", "token_feeds", "token_feeds_refusal"]

# What a pass such as `kv` may make superfluous: it derives these from the cache lengths.
_DERIVED = ("attention_mask", "position_ids")
_MADE = (TOKENS, *_DERIVED, "token_type_ids")


def capacity(inputs: Sequence[Port]) -> int | None:
    """Number of tokens that fit in the cache; None where it grows or there is none."""
    return min((c.capacity for c in cache_ports(inputs) if c.capacity is not None), default=None)


def sample_feeds(inputs: Sequence[Port], sample: Feeds) -> dict[str, Array]:
    """The feeds of one sample for a graph, with empty caches where it takes some.

    Raises:
        SampleError: The graph takes an input that the sample does not have, or the sample has one
            that the graph does not take and that cannot be derived.
    """
    names = {port.name for port in inputs}
    unknown = sorted(set(sample) - names - set(_DERIVED))
    if unknown:
        raise SampleError(f"a sample has inputs {unknown}, which the graph does not take")
    kept = {name: array for name, array in sample.items() if name in names}
    real = valid_positions(sample)
    if NEW_LENGTHS in names and real is not None:
        kept[NEW_LENGTHS] = _last_real(real) + 1
    feeds = complete_feeds(inputs, kept)
    missing = sorted(names - set(feeds))
    if missing:
        raise SampleError(f"the graph takes inputs {missing}, which a sample does not have")
    return feeds


def _last_real(real: Array) -> Array:
    """Index of the last True of each row [B,S] -> int64 [B]; 0 where there is none."""
    found: Array = np.where(real, np.arange(real.shape[1]), 0).max(axis=1).astype(np.int64)
    return found


def token_feeds_refusal(inputs: Sequence[Port], rows: Sequence[Array]) -> str | None:
    """Why `token_feeds` cannot feed these rows to a graph; None if it can."""
    ports = {port.name: port for port in inputs}
    if TOKENS not in ports:
        return f"the graph has no input '{TOKENS}'"
    caches = {cache.past for cache in cache_ports(inputs)}
    other = sorted(set(ports) - set(_MADE) - caches - {LENGTHS, NEW_LENGTHS})
    if other:
        return f"tokens alone cannot feed the inputs {other}"
    shape = ports[TOKENS].shape
    if len(shape) != 2:
        return f"the input '{TOKENS}' does not have the axes [batch, tokens]"
    needed = (len(rows), max(len(row) for row in rows))
    if any(isinstance(d, int) and d < n for d, n in zip(shape, needed, strict=True)):
        return f"{needed[0]} x {needed[1]} tokens do not fit the input '{TOKENS}' {list(shape)}"
    return None


def token_feeds(
    inputs: Sequence[Port], rows: Sequence[Array], lengths: Array | None = None
) -> dict[str, Array]:
    """The feeds of token rows of different lengths, padded on the right with token 0.

    Besides `input_ids`, the usual companions are made: `attention_mask` (1 on real tokens),
    `position_ids` (0, 1, ...), `token_type_ids` (0), `new_lengths` (n_i). A fixed batch or sequence
    axis is filled up.

    Args:
        inputs: What the graph takes.
        rows: Token ids of each row, int64 [n_i].
        lengths: `cache_lengths` [B] before the call; an empty cache is added when None.

    Returns:
        The feeds; past buffers are in them only when `lengths` is None.

    Raises:
        UnsupportedError: The graph cannot be fed so; see `token_feeds_refusal`.
    """
    refusal = token_feeds_refusal(inputs, rows)
    if refusal:
        raise UnsupportedError(refusal)
    ports = {port.name: port for port in inputs}
    needed = (len(rows), max(len(row) for row in rows))
    axes = zip(ports[TOKENS].shape, needed, strict=True)
    batch, tokens = (d if isinstance(d, int) else n for d, n in axes)
    made = {name: np.zeros((batch, tokens), np.int64) for name in _MADE}
    made["position_ids"] += np.arange(tokens)
    for index, row in enumerate(rows):
        made[TOKENS][index, : len(row)] = row
        made["attention_mask"][index, : len(row)] = 1
    feeds = {k: v.astype(ports[k].dtype) for k, v in made.items() if k in ports}
    if NEW_LENGTHS in ports:
        filled = [1] * (batch - len(rows))
        feeds[NEW_LENGTHS] = np.array([*map(len, rows), *filled], np.int64)
    if lengths is None:
        return complete_feeds(inputs, feeds)
    return feeds | {LENGTHS: lengths}
