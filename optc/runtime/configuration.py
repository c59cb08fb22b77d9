"""Where a model's `config.json` speaks of its decoder: at the top, or in parts of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["config_part", "decoder_parts"]

# Models made of an encoder's and a decoder's configuration; models of text and something else.
_PARTS = ("decoder", "text_config")


def config_part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a configuration; empty where it has none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def decoder_parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What may be about the decoder, what counts for more first; each with its prefix of keys."""
    yield "", config
    yield from ((f"{name}.", config_part(config, name)) for name in _PARTS)
