"""Drive a decoder with a cache: piece by piece, rows of different lengths, and back again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optc.core.base import PassResult
from optc.core.context import Context
from optc.core.session import Session
from optc.ir.interface import cache_ports, complete_feeds
from optc.passes.kv import KV

__all__ = ["Conversation", "in_chunks", "on_tokens", "ragged", "rolled_back", "run_kv"]

Array = np.ndarray


def run_kv(model: ir.Model, kv: KV) -> PassResult:
    """The pass, with its contract."""
    kv.requires(model, Context())
    result = kv.run(model, Context())
    kv.ensures(model, result)
    return result


class Conversation:
    """A cache, and how many tokens of each row are in it.

    Args:
        session: Of a graph with a cache.
        rows: Number of rows.
    """

    def __init__(self, session: Session, rows: int):
        self.session = session
        self.lengths = np.zeros(rows, np.int64)
        self._caches: dict[str, Array] = {}

    def say(self, tokens: Array, real: Sequence[int] | None = None) -> Array:
        """Logits [B,S,V] of new tokens [B,S], of which the first `real` of each row count."""
        feeds = {"input_ids": tokens, "cache_lengths": self.lengths} | self._caches
        out = self.session.run(complete_feeds(self.session.inputs, feeds))
        self._caches = {c.past: out[c.present] for c in cache_ports(self.session.inputs)}
        self.lengths = self.lengths + (tokens.shape[1] if real is None else np.array(real))
        return out["logits"]


def in_chunks(session: Session, tokens: Array, chunks: Sequence[int]) -> Array:
    """Logits of a sequence [B,S], said in pieces of these sizes."""
    talk, parts, done = Conversation(session, len(tokens)), [], 0
    for chunk in chunks:
        new = tokens[:, done : done + chunk]
        if new.size:
            parts.append(talk.say(new))
            done += chunk
    return np.concatenate(parts, 1)


def ragged(session: Session, rows: Sequence[Array], prompts: Sequence[int]) -> list[Array]:
    """Logits of rows [n_i], in one batch: a prompt of each, then pieces of 1, 3 and 2 tokens."""
    talk, longest = Conversation(session, len(rows)), max(prompts)
    first = np.stack([np.resize(row[:n], longest) for row, n in zip(rows, prompts, strict=True)])
    parts = [talk.say(first, prompts)]
    for count in (1, 3, 2):
        new = [row[at : at + count] for row, at in zip(rows, talk.lengths, strict=True)]
        parts.append(talk.say(np.stack(new)))
    return [
        np.concatenate([parts[0][row, :n], *(part[row] for part in parts[1:])])
        for row, n in enumerate(prompts)
    ]


def rolled_back(session: Session, tokens: Array, kept: Sequence[int]) -> list[Array]:
    """Logits of each row [S] behind its first `kept` tokens, after others were said there."""
    talk, count = Conversation(session, len(tokens)), tokens.shape[1]
    others = (tokens + 1 + np.arange(count)) % tokens.max()
    beginning = np.arange(count) < np.array(kept)[:, None]
    talk.say(np.where(beginning, tokens, others))
    talk.lengths = np.array(kept)
    rest = min(count - n for n in kept)
    new = [tokens[row, n : n + rest] for row, n in enumerate(kept)]
    return list(talk.say(np.stack(new)))


def on_tokens(model: ir.Model, hidden: str, table: Array) -> ir.Model:
    """Rows of a table [V,D] by `input_ids` instead of hidden states [B,S,D]; gives `logits`."""
    value = next(v for v in model.graph.inputs if v.name == hidden)
    tensor = ir.tensor(table, name="words")
    words = ir.Value(name="words", const_value=tensor, type=value.type, shape=tensor.shape)
    model.graph.register_initializer(words)
    tokens = ir.val("input_ids", ir.DataType.INT64, list(value.shape)[:2])
    node = ir.node("Gather", [words, tokens], name="look_up")
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    model.graph.inputs[model.graph.inputs.index(value)] = tokens
    model.graph.insert_before(model.graph[0], node)
    model.graph.outputs[0].name = "logits"
    return model
