"""How many tokens a row may have, and who says so: the engine, or the model's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optc.core.errors import UnsupportedError
from optc.core.session import CachedSession, Session
from optc.ir.interface import cache_ports, token_name
from optc.runtime.arguments import named
from optc.runtime.configuration import decoder_parts
from optc.runtime.row import Finish
from optc.runtime.tokenizer import read_json

__all__ = [
    "Limit",
    "check_length",
    "configured_limit",
    "least",
    "positions_limit",
    "smallest_limit",
]

# What configurations of transformers call it; the first that is there counts.
_DECODERS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
# T5 has n_positions too, and positions that are relative: its number says how it was trained.
_ENCODER_DECODERS = (
    "max_target_positions",
    "max_decoder_position_embeddings",
    "max_position_embeddings",
)
# Tokenizers have a number such as 1e30 where they do not know.
_LONGEST = 1 << 30


@dataclasses.dataclass(frozen=True)
class Limit:
    """A largest number of tokens of a row, prompt and new ones together.

    Attributes:
        tokens: The number.
        says: What has this limit, as words in front of the number.
        finish: Why a row ends that comes to it.
    """

    tokens: int
    says: str
    finish: str

    def __str__(self) -> str:
        return f"{self.says} {self.tokens}"


def configured_limit(folder: Path | None) -> Limit | None:
    """What the model's files say, which is how long its training sequences were.

    Args:
        folder: Has `config.json`, or at least `tokenizer_config.json`; None where there is none.

    Raises:
        InputError: One of them is damaged.
    """
    if folder is None:
        return None
    config = read_json(folder / "config.json")
    if not config:
        name, config = "tokenizer_config.json's ", read_json(folder / "tokenizer_config.json")
        return _first(name, config, ("model_max_length",))
    found = (
        _first(f"config.json's {prefix}", part, _keys(config, part, prefix))
        for prefix, part in decoder_parts(config)
    )
    return next((limit for limit in found if limit), None)


def _keys(config: Mapping[str, Any], part: Mapping[str, Any], prefix: str) -> Sequence[str]:
    """What a part calls it; the decoder's own is that of a decoder, whatever stands beside it."""
    whole = {} if prefix == "decoder." else config
    pair = part.get("is_encoder_decoder", whole.get("is_encoder_decoder"))
    return _ENCODER_DECODERS if pair is True else _DECODERS


def _first(prefix: str, config: Mapping[str, Any], keys: Sequence[str]) -> Limit | None:
    for key in keys:
        number = config.get(key)
        if type(number) is int and 0 < number < _LONGEST:
            return Limit(number, f"{prefix}{key} =", Finish.CONTEXT)
    return None


def smallest_limit(session: Session, more: Limit | None = None) -> Limit | None:
    """The smallest of what an engine can take, and of another limit; None where there is none.

    An engine is limited by the size of a static cache, by a fixed sequence axis, and by a table of
    positions.
    """
    return least([*_limits(session), more])


def least(limits: Iterable[Limit | None]) -> Limit | None:
    """The smallest of some limits; None where there is none."""
    found = (limit for limit in limits if limit is not None)
    return min(found, key=lambda limit: limit.tokens, default=None)


def positions_limit(tokens: int) -> Limit:
    """The limit of an engine whose tables have positions for so many tokens."""
    return Limit(tokens, "the model has positions for", Finish.CONTEXT)


def _limits(session: Session) -> Iterator[Limit]:
    tokens = token_name(port.name for port in session.inputs)
    widths = [port.shape[-1] for port in session.inputs if port.name == tokens and port.shape]
    caches = [cache for cache in cache_ports(session.inputs) if not cache.is_cross]
    sizes = [c.capacity for c in caches] if caches else widths
    says = "the engine's cache holds" if caches else "the graph's fixed length is"
    finish = Finish.CACHE if caches else Finish.CONTEXT
    yield from (Limit(size, says, finish) for size in sizes if isinstance(size, int))
    most = session.most_tokens if isinstance(session, CachedSession) else None
    if most is not None:
        yield positions_limit(most)


def check_length(
    limit: Limit | None, prompts: Sequence[Sequence[int]], new: int, *, start: bool = False
) -> None:
    """See that prompts and `new` tokens behind each fit; the last new token needs no place.

    Args:
        limit: Most tokens of a row; None where there is no limit.
        prompts: Token ids of each row.
        new: New tokens of each.
        start: Whether they are what a decoder starts with, and an encoder has the prompts.

    Raises:
        UnsupportedError: They do not; the message has the limit, and what would fit.
    """
    longest = max((len(row) for row in prompts), default=0)
    if limit is None or longest + new - 1 <= limit.tokens:
        return
    if longest > limit.tokens:
        which = next(index for index, row in enumerate(prompts, 1) if len(row) == longest)
        name = "the decoder's start" if start else named("prompt", which, len(prompts))
        problem = f"{name} has {longest} tokens, {limit}"
        raise UnsupportedError(problem, remedy="give a shorter one")
    what = "start" if start else "prompt"
    shorter = "" if longest == 1 else f", or give a shorter {what}"
    raise UnsupportedError(
        f"{what} and new tokens need {longest + new - 1} places, {limit}",
        remedy=f"ask for at most {limit.tokens - longest + 1} new tokens{shorter}",
    )
