"""Which tokens the decoder of an encoder-decoder starts with, read from the model's files.

Keys are looked up in `generation_config.json`, then in `config.json`, then in what that says of its
decoder. `decoder_start_token_id` comes first; where it is not given, `bos_token_id` stands in, as
in Transformers (`GenerationMixin`). `forced_bos_token_id`, such as a language, follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optc.core.errors import UnsupportedError
from optc.runtime.configuration import config_part, decoder_parts
from optc.runtime.tokenizer import read_json

__all__ = ["DecoderStart", "read_start"]


class DecoderStart:
    """Tokens that stand around texts, as the model's configuration has them.

    Args:
        configs: Configurations, those that count for more first.
        encoder: The part of a configuration that is about the encoder, where there is one.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]], encoder: Mapping[str, Any]):
        self._configs = tuple(configs)
        self._encoder = encoder

    @property
    def encoder_tokens(self) -> int | None:
        """Tokens that the encoder was made for; None where the configuration does not say."""
        key = "max_position_embeddings"
        return _number(self._encoder, key) or self._find(key)

    @property
    def padding(self) -> int:
        """The token behind the end of an encoder's text; 0 where none is given."""
        found = self._find("pad_token_id")
        return 0 if found is None else found

    def tokens(self) -> tuple[int, ...]:
        """What the decoder is given before its first own token.

        Raises:
            UnsupportedError: The configuration names no such token.
        """
        start = self._find("decoder_start_token_id")
        start = self._find("bos_token_id") if start is None else start
        if start is None:
            raise UnsupportedError(
                "the bundle names no decoder_start_token_id for its decoder to start with",
                remedy="say it with --decoder-start-token, or build again with the model's "
                "config.json and tokenizer.json beside its .onnx file",
            )
        forced = self._find("forced_bos_token_id")
        return (start,) if forced is None else (start, forced)

    def _find(self, key: str) -> int | None:
        found = (_number(config, key) for config in self._configs)
        return next((number for number in found if number is not None), None)


def _number(config: Mapping[str, Any], key: str) -> int | None:
    """The number under `key`; null, lists and whatever else is there do not count."""
    found = config.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def read_start(folder: Path | None) -> DecoderStart:
    """Read the files in `folder`, where a bundle has its tokenizer; None for a bundle without.

    Raises:
        InputError: A file is damaged.
    """
    if folder is None:
        return DecoderStart([], {})
    config = read_json(folder / "config.json")
    parts = (part for _, part in decoder_parts(config))
    configs = [read_json(folder / "generation_config.json"), *parts]
    return DecoderStart(configs, config_part(config, "encoder"))
