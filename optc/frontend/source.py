"""What the user calls SOURCE, loaded: a model, what it takes and gives, its tokenizer.

1. A Hugging Face-format folder: `config.json` and weights.
2. A GGUF file, or a folder with exactly one `.gguf` and no `config.json`.
3. `package.module:factory`, see `optc.frontend.factory`.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from typing import Any

import torch

from optc.core.errors import InputError, NotYetError
from optc.frontend.quiet import quiet
from optc.frontend.token_ids import IdRange
from optc.frontend.wrap import NamedModule, named_tensors

__all__ = ["Kind", "Source", "describe_model"]

_ENCODER_OUTPUTS = ("logits", "last_hidden_state")
_TRACE_BATCH, _TRACE_TOKENS = 2, 5


class Kind(enum.Enum):
    """What a model is, judged by what it can do."""

    CAUSAL_LM = "causal-lm"
    ENCODER = "encoder"
    MODULE = "module"


@dataclasses.dataclass(frozen=True)
class Source:
    """A loaded model, ready to be exported and asked.

    Attributes:
        label: Short name for messages and notes; no machine path in it.
        kind: What it is.
        module: The model, float32 and in eval mode.
        example: Inputs by name, in the order of the exported graph; token models: [2, 5] int64.
        outputs: Names of the outputs, in the order of the exported graph.
        fixed: Further keyword arguments of every call, such as `use_cache=False`.
        tokenizer: A transformers tokenizer, or None.
        eos: Token ids that end a text.
        vocabulary: Number of token ids the model knows; 0 when it takes no tokens.
        max_tokens: Longest sequence it takes; 0 when it does not say.
        ids: Of a module, token ids that there are of each input that chooses rows of a table.
    """

    label: str
    kind: Kind
    module: torch.nn.Module
    example: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Any = None
    eos: tuple[int, ...] = ()
    vocabulary: int = 0
    max_tokens: int = 0
    ids: dict[str, IdRange] = dataclasses.field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the exported graph."""
        return tuple(self.example)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template, if there is one."""
        return getattr(self.tokenizer, "chat_template", None)

    def wrapped(self) -> NamedModule:
        """The model as positional tensors in, tuple of tensors out."""
        return NamedModule(self.module, self.inputs, self.outputs, self.fixed).eval()


def describe_model(model: Any, tokenizer: Any, label: str) -> Source:
    """Describe a transformers model by what it can do, never by what it is called.

    A model that can generate is a causal LM, `input_ids` to `logits`. Any other text model is an
    encoder, `input_ids` and `attention_mask` to `logits` where it has a head, else to
    `last_hidden_state`.

    Raises:
        NotYetError: An encoder-decoder, or a model that does not read text.
    """
    model = model.eval()
    takes = inspect.signature(model.forward).parameters
    if "decoder_input_ids" in takes:
        problem = "an encoder-decoder is not exported by folder yet"
        remedy = (
            "write a factory, as docs/kv-encoder-decoder.md shows, and give package.module:factory"
        )
        raise NotYetError(problem, where=label, remedy=remedy)
    if model.main_input_name != "input_ids":
        problem = f"a model that takes '{model.main_input_name}' is not exported by folder yet"
        remedy = "write a factory and give package.module:factory"
        raise NotYetError(problem, where=label, remedy=remedy)
    kind = Kind.CAUSAL_LM if model.can_generate() else Kind.ENCODER
    vocabulary = model.get_input_embeddings().weight.shape[0]
    example = _example(takes, kind, vocabulary)
    fixed: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    outputs = ("logits",)
    if kind is Kind.ENCODER:
        outputs = (_encoder_output(model, example, fixed, label),)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    eos = _eos(model, tokenizer)
    return Source(
        label, kind, model, example, outputs, fixed, tokenizer, eos, vocabulary, limit or 0
    )


def _example(takes: Any, kind: Kind, vocabulary: int) -> dict[str, torch.Tensor]:
    count = _TRACE_BATCH * _TRACE_TOKENS
    ids = (torch.arange(count) % vocabulary).reshape(_TRACE_BATCH, _TRACE_TOKENS)
    if kind is Kind.CAUSAL_LM or "attention_mask" not in takes:
        return {"input_ids": ids}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _encoder_output(
    model: Any, example: dict[str, torch.Tensor], fixed: dict[str, Any], label: str
) -> str:
    with torch.inference_mode(), quiet():
        named = named_tensors(model(**example, **fixed))
    found = next((name for name in _ENCODER_OUTPUTS if name in named), None)
    if found is None:
        problem = f"its outputs {sorted(named)} include none of {', '.join(_ENCODER_OUTPUTS)}"
        raise InputError(problem, where=label, remedy="write a factory")
    return found


def _eos(model: Any, tokenizer: Any) -> tuple[int, ...]:
    holders = (getattr(model, "generation_config", None), model.config, tokenizer)
    for holder in holders:
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, list | tuple) else (int(found),)
    return ()
