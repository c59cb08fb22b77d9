"""What runtimes want to know about a generator, read from its bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optc.api.room import model_limit
from optc.bundle.read import Bundle
from optc.core.errors import UnsupportedError, UsageError
from optc.core.session import Port
from optc.ir.interface import (
    DECODER_TOKENS,
    LENGTHS,
    LOGITS,
    NEW_LENGTHS,
    TOKENS,
    CachePort,
    cache_ports,
    past_name,
    ports,
)
from optc.runtime.limits import Limit, least
from optc.runtime.row import Finish
from optc.runtime.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, read_json

__all__ = ["Facts", "context_of", "read_facts", "why_not", "write_json"]

_KNOWN = frozenset({TOKENS, LENGTHS, NEW_LENGTHS})
_FLOATS = frozenset({"float32", "float16", "bfloat16"})


@dataclasses.dataclass(frozen=True)
class Facts:
    """A generator, from outside.

    Attributes:
        layers: Number of cached attention sites.
        heads: Key/value heads, the same in every layer.
        dim: Size of one head, of keys and of values.
        capacity: Tokens that a fixed cache holds; None where it grows.
        vocabulary: Number of token ids.
        context: Most tokens of a sequence.
        bos: Id of the token that begins a text, if the model has one.
        eos: Ids that end a text.
        pad: Id that fills rows; with no token for that, the first of `eos`, else 0.
        config: The source's `config.json`, or nothing.
        folder: What came with the model, the tokenizer's files above all; None if nothing did.
    """

    layers: int
    heads: int
    dim: int
    capacity: int | None
    vocabulary: int
    context: int
    bos: int | None
    eos: tuple[int, ...]
    pad: int
    config: Mapping[str, Any]
    folder: Path | None

    def copy_tokenizer(self, folder: Path, without: Iterable[str] = ()) -> None:
        """Copy the tokenizer's files into `folder`."""
        for file in sorted(self.folder.iterdir()) if self.folder else ():
            if file.name not in without:
                shutil.copyfile(file, folder / file.name)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file beside the tokenizer; empty if there is none."""
        return _read_json(self.folder, name)


def read_facts(bundle: Bundle, model: ir.Model, context: int | None, *, where: str) -> Facts:
    """Look at an engine and at what lies beside it.

    Args:
        bundle: The bundle.
        model: Its engine.
        context: Most tokens of a sequence, if the user said so.
        where: The bundle, for messages.

    Raises:
        UnsupportedError: It is not a generator of the kind that these runtimes know.
        UsageError: The context is not known, or more than the cache holds.
    """
    inputs, outputs = ports(model.graph.inputs), ports(model.graph.outputs)
    reason = why_not(inputs)
    if reason:
        raise UnsupportedError(reason[0], where=where, remedy=reason[1] or None)
    caches = cache_ports(inputs)
    folder = bundle.tokenizer
    config = _read_json(folder, "config.json")
    holders = [_read_json(folder, "generation_config.json"), config]
    tokenizer = load_tokenizer(folder) if folder and has_tokenizer(folder) else None
    eos = tokenizer.eos_ids if tokenizer else tuple(_ids("eos", holders, None))
    first = caches[0]
    return Facts(
        layers=len(caches) // 2,
        heads=first.heads,
        dim=first.dim,
        capacity=first.capacity,
        vocabulary=_vocabulary(outputs, where),
        context=context_of(context, _limits(model, first.capacity, folder), where),
        bos=next(iter(_ids("bos", holders, tokenizer)), None),
        eos=eos,
        pad=[*_ids("pad", holders, tokenizer), *eos, 0][0],
        config=config,
        folder=folder,
    )


def why_not(inputs: Sequence[Port]) -> tuple[str, str] | None:
    """Why an engine is not one that these runtimes can feed, and what to do, if anything."""
    caches = cache_ports(inputs)
    return _not_a_decoder(inputs, caches) or _irregular(caches)


def _not_a_decoder(inputs: Sequence[Port], caches: Sequence[CachePort]) -> tuple[str, str] | None:
    """Why a graph has not the cache interface of a decoder, and what to do."""
    names = {port.name for port in inputs}
    if DECODER_TOKENS in names:
        return "it is an encoder-decoder, and only decoders are packaged", ""
    if not {TOKENS, LENGTHS} <= names or not caches:
        return "it is not a generator with a cache", "build it with --passes flash,kv"
    known = _KNOWN | {cache.past for cache in caches}
    pairs = [past_name(i, part) for i in range(len(caches) // 2) for part in ("key", "value")]
    strange = sorted(names - known) + sorted(known - _KNOWN - set(pairs))
    if strange:
        return f"it has inputs that these runtimes do not give: {', '.join(strange)}", ""
    return None


def _irregular(caches: Sequence[CachePort]) -> tuple[str, str] | None:
    """Why no single shape describes all caches."""
    if len({(cache.heads, cache.dim, cache.capacity) for cache in caches}) > 1:
        return "its layers, or keys and values, differ in the shape of their caches", ""
    strange = sorted({cache.dtype for cache in caches} - _FLOATS)
    if strange:
        return f"its cache holds {strange[0]}", "build it with a cache of floats"
    return None


def _vocabulary(outputs: Sequence[Port], where: str) -> int:
    size = next((port.shape[-1] for port in outputs if port.name == LOGITS), None)
    if not isinstance(size, int):
        raise UnsupportedError("the number of tokens it knows is not in its graph", where=where)
    return size


def _limits(model: ir.Model, capacity: int | None, folder: Path | None) -> list[Limit | None]:
    """All that is known of how long a sequence may be."""
    cache = None if capacity is None else Limit(capacity, "the cache holds", Finish.CACHE)
    return [cache, model_limit(model, folder)]


def context_of(asked: int | None, limits: Sequence[Limit | None], where: str) -> int:
    """How long a sequence may be: what was asked for, else the smallest limit.

    Raises:
        UsageError: Nothing says it, or a limit is smaller than what was asked for.
    """
    limit = least(limits)
    if asked is None and limit is None:
        problem = "it does not say how long a sequence may be"
        remedy = "say so with --context, or export and build again: config.json then comes along"
        raise UsageError(problem, where=where, remedy=remedy)
    if asked is not None and asked < 1:
        problem = f"a sequence of {asked} tokens is none"
        raise UsageError(problem, where="--context", remedy="give a positive number")
    if asked is not None and limit is not None and asked > limit.tokens:
        problem = f"a sequence of {asked} tokens does not fit, {limit}"
        remedy = f"give at most {limit.tokens}"
        raise UsageError(problem, where="--context", remedy=remedy)
    return asked or (limit.tokens if limit is not None else 0)


def _ids(role: str, holders: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None) -> list[int]:
    """Ids of the tokens with a role (`bos`, `eos`, `pad`), from the first that names any."""
    for holder in holders:
        given = holder.get(f"{role}_token_id")
        found = [i for i in (given if isinstance(given, list) else [given]) if isinstance(i, int)]
        if found:
            return found
    named = tokenizer.special_id(f"{role}_token") if tokenizer else None
    return [] if named is None else [named]


def _read_json(folder: Path | None, name: str) -> dict[str, Any]:
    return read_json(folder / name) if folder else {}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document`, keys sorted."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
