"""The cache interface of a generator graph, read from its signature.

Inputs `input_ids` [B,S], `cache_lengths` [B] int64, `past_key_values.{i}.key|value`; outputs
`logits` and `present.{i}.key|value`. `cache_lengths` counts the tokens that are in the cache before
the call. The same graph prefills, decodes, takes ragged batches (pad on the right, then pass each
row's own length next time) and rolls back (pass a smaller length).

An encoder-decoder takes `decoder_input_ids` [B,S] beside the encoder's inputs. Its caches are
`past_key_values.{i}.decoder.key|value`, which behave as above, and `.encoder.key|value`, what
attention to the encoder sees: with 0 tokens in them the encoder is run and gives them, otherwise
they come back as they are and the encoder is skipped.
A graph may take `new_lengths` [B] int64 too: how many of each row's tokens are real. Then it
answers for the last of them only, and `logits` is [B,1,V].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.session import Port

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "DECODER_PADDING",
    "DECODER_POSITIONS",
    "DECODER_TOKENS",
    "LENGTHS",
    "LOGITS",
    "NEW_LENGTHS",
    "PADDING",
    "PADDING_IDS",
    "POSITIONS",
    "TOKENS",
    "TOKEN_INPUTS",
    "CachePort",
    "cache_ports",
    "complete_feeds",
    "note_padding_ids",
    "padding_ids_in",
    "past_name",
    "ports",
    "present_name",
    "present_of",
    "token_count",
    "token_name",
]

TOKENS = "input_ids"
DECODER_TOKENS = "decoder_input_ids"
TOKEN_INPUTS = (DECODER_TOKENS, TOKENS)
LENGTHS = "cache_lengths"
NEW_LENGTHS = "new_lengths"
LOGITS = "logits"
PADDING = "attention_mask"
POSITIONS = "position_ids"
DECODER_PADDING = "decoder_attention_mask"
DECODER_POSITIONS = "decoder_position_ids"
PADDING_IDS = "optc.padding_ids"
"""Key of a model's metadata: ids that a graph with a cache takes for padding, in one text."""


def note_padding_ids(model: ir.Model, ids: Iterable[int]) -> None:
    """Write into a model's metadata which ids may stand behind a row's tokens only."""
    model.metadata_props.pop(PADDING_IDS, None)  # whatever the model came with
    if text := " ".join(map(str, sorted(ids))):
        model.metadata_props[PADDING_IDS] = text


def padding_ids_in(notes: Mapping[str, str]) -> frozenset[int]:
    """The same, read from a model's metadata."""
    return frozenset(int(word) for word in notes.get(PADDING_IDS, "").split())


def token_name(names: Iterable[str]) -> str | None:
    """Which of a graph's inputs takes the tokens that its logits follow; None if none does."""
    given = set(names)
    return next((name for name in TOKEN_INPUTS if name in given), None)


def past_name(layer: int, part: str) -> str:
    """Input that holds the cached `key` or `value` of attention site `layer`.

    In an encoder-decoder `part` is `decoder.key`, `decoder.value`, `encoder.key` or
    `encoder.value`.
    """
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """Output that holds the updated `key` or `value` of attention site `layer`; see `past_name`."""
    return f"present.{layer}.{part}"


def present_of(past: str) -> str:
    """Output that replaces the cache input `past`; empty for other inputs."""
    prefix, _, rest = past.partition(".")
    return f"present.{rest}" if prefix == "past_key_values" else ""


@dataclasses.dataclass(frozen=True)
class CachePort:
    """One cache buffer of a generator graph, [B, heads, tokens, dim].

    Attributes:
        past: Name of the input.
        present: Name of the output that replaces it.
        heads: Key/value heads.
        dim: Size of one head.
        dtype: numpy name of the element type.
        capacity: Number of tokens of a fixed buffer; None where the cache grows, or is what an
            encoder gives.
    """

    past: str
    present: str
    heads: int
    dim: int
    dtype: str
    capacity: int | None

    @property
    def is_cross(self) -> bool:
        """Whether it holds what an encoder gives: computed once, whatever `cache_lengths` says."""
        return self.past.split(".")[2:3] == ["encoder"]

    def empty(self, batch: int) -> Array:
        """A cache with nothing in it, for `batch` rows."""
        return np.zeros((batch, self.heads, self.capacity or 0, self.dim), np.dtype(self.dtype))


def ports(values: Iterable[ir.Value]) -> tuple[Port, ...]:
    """Describe graph inputs or outputs."""
    found = []
    for value in values:
        dims = list(value.shape) if value.shape is not None else []
        shape = tuple(d if isinstance(d, int) else str(d.value or "?") for d in dims)
        dtype = value.dtype.numpy().name if value.dtype is not None else "?"
        found.append(Port(value.name or "?", dtype, shape))
    return tuple(found)


def cache_ports(inputs: Iterable[Port]) -> tuple[CachePort, ...]:
    """The cache buffers among a session's or graph's inputs, in input order."""
    found = []
    for port in inputs:
        present = present_of(port.name)
        if not present or len(port.shape) != 4:
            continue
        _, heads, tokens, dim = port.shape
        if not isinstance(heads, int) or not isinstance(dim, int):
            continue
        capacity = tokens if isinstance(tokens, int) else None
        found.append(CachePort(port.name, present, heads, dim, port.dtype, capacity))
    return tuple(found)


def complete_feeds(inputs: Iterable[Port], feeds: Feeds) -> dict[str, Array]:
    """Add an empty cache to a sample that was made for the graph without one.

    Args:
        inputs: What the graph takes.
        feeds: A sample, by input name; the batch is the first axis of the token input, else of the
            first array that has axes, else 1.

    Returns:
        The sample, with `cache_lengths` zero, `new_lengths` the number of tokens, and empty past
        buffers where the graph wants them and the sample does not name them.
    """
    given = list(inputs)
    complete = dict(feeds)
    batch = _batch(feeds)
    if any(port.name == LENGTHS for port in given):
        complete.setdefault(LENGTHS, np.zeros(batch, np.int64))
    if any(port.name == NEW_LENGTHS for port in given):
        complete.setdefault(NEW_LENGTHS, np.full(batch, token_count(feeds), np.int64))
    for cache in cache_ports(given):
        complete.setdefault(cache.past, cache.empty(batch))
    return complete


def _batch(feeds: Feeds) -> int:
    tokens = token_name(feeds)
    leaders = [] if tokens is None else [feeds[tokens]]
    return next((array.shape[0] for array in [*leaders, *feeds.values()] if array.ndim), 1)


def token_count(feeds: Feeds) -> int:
    """Tokens of each row; 1 where the feeds hold none."""
    tokens = feeds.get(DECODER_TOKENS, feeds.get(TOKENS))
    return tokens.shape[1] if tokens is not None and tokens.ndim == 2 else 1
