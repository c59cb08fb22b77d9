"""Text to tokens and back, from the files beside a model; no torch, no transformers, no pickles.

Files read, all as data: `tokenizer.json` (needed), `tokenizer_config.json`,
`special_tokens_map.json`, `generation_config.json`, `chat_template.jinja`; `config.json` for the
end-of-text ids of models that have them only there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from optc.core.errors import InputError, UnsupportedError
from optc.runtime.chat import render_chat

__all__ = ["FILES", "TextStream", "Tokenizer", "has_tokenizer", "load_tokenizer", "read_json"]

_TOKENIZER = "tokenizer.json"
FILES = (
    _TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)
"""A tokenizer's files, and the model's `config.json`, as they lie beside a model or in a bundle."""

_HALF = "\ufffd"


class Tokenizer:
    """Encodes, decodes, renders chats.

    Args:
        backend: The tokenizer proper.
        special: Names such as `bos_token` and their text.
        eos_ids: Ids that end a sequence.
        chat_template: Jinja text, if the model has one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: Mapping[str, str],
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ):
        self._backend = backend
        self._special = dict(special)
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self.chat_template = chat_template

    def special_id(self, name: str) -> int | None:
        """Id of a special token by its role, such as `pad_token`."""
        text = self._special.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; with the tokens that the model wants around it, unless told not."""
        return list(self._backend.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant speaks.

        Args:
            messages: `{"role": "user", "content": "..."}` and the like.

        Raises:
            UnsupportedError: There is no chat template, or it cannot be rendered.
        """
        if self.chat_template is None:
            raise UnsupportedError(
                "this tokenizer has no chat template", remedy="run it without --chat"
            )
        return self.encode(render_chat(self.chat_template, messages, self._special), special=False)

    def stream(self) -> TextStream:
        """A decoder that is fed one token at a time."""
        return TextStream(self)


class TextStream:
    """Decodes a growing sequence; never shows half a character.

    Text is the difference of two decodings of a short window: tokens that are already shown, and
    those plus the new ones. The window keeps decoders right that treat the first token
    differently; what ends in a replacement character waits for the bytes that complete it.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._window = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """Add one token; the text that became certain with it, often empty."""
        self._tokens.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith(_HALF):
            return ""
        self._window, self._shown = self._shown, len(self._tokens)
        return fresh

    def finish(self) -> str:
        """The rest, without the half character that may be left at the end."""
        fresh = self._fresh().rstrip(_HALF)
        self._shown = len(self._tokens)
        return fresh

    def _fresh(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._window : self._shown])
        after = self._tokenizer.decode(self._tokens[self._window :])
        return after[len(before) :]


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer to load, and not only a model's configuration."""
    return (folder / _TOKENIZER).is_file()


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read the tokenizer that lies in `folder`.

    Raises:
        UnsupportedError: There is none.
        InputError: A file is damaged.
    """
    folder = Path(folder)
    path = folder / _TOKENIZER
    if not has_tokenizer(folder):
        raise UnsupportedError(
            "there is no tokenizer.json in it",
            where=str(folder),
            remedy="put the model's tokenizer.json beside model.onnx and build again",
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"not a tokenizer file ({error})", where=str(path)) from error
    # A file may carry the training-time limits; generation must see all of the text.
    backend.no_truncation()
    backend.no_padding()
    config = read_json(folder / "tokenizer_config.json")
    special = _special_tokens(read_json(folder / "special_tokens_map.json") | config)
    ends = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    return Tokenizer(
        backend,
        special=special,
        eos_ids=_eos_ids(backend, special, ends),
        chat_template=_chat_template(folder / "chat_template.jinja", config),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no file.

    Raises:
        InputError: There is something else in it.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not a JSON file ({error})", where=str(path)) from error
    if not isinstance(found, dict):
        raise InputError("not a JSON object", where=str(path))
    return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Entries such as `eos_token`, which are text or objects with a `content`."""
    found = {}
    for name, token in config.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _eos_ids(
    backend: tokenizers.Tokenizer, special: Mapping[str, str], generation: Mapping[str, Any]
) -> list[int]:
    given = generation.get("eos_token_id")
    listed = given if isinstance(given, list) else [given]
    found = [token for token in listed if isinstance(token, int)]
    named = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return found if named is None else [*found, named]


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    """The template's text: its own file, one text in the configuration, or a list with names."""
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"not a text file ({error})", where=str(path)) from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
