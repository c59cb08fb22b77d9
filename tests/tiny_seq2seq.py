"""Tiny encoder-decoders of Transformers with random weights: exported, with their files beside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, processors
from transformers.generation import GenerationMixin

from optc.frontend.source import Kind, Source
from optc.frontend.torch_onnx import to_onnx
from optc.ir.save import save_model

__all__ = ["KINDS", "TinySeq2Seq", "make"]

VOCABULARY = 96
FORCED = 9
SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
    "tie_word_embeddings": False,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}
KINDS = {
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, ("input_ids", "attention_mask")),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        SIZES | {"max_position_embeddings": 64, "forced_eos_token_id": None},
        ("input_ids",),
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        SIZES | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64},
        ("input_features",),
    ),
}
# T5 does not scale its scores: larger ones would make much of round-off.
SPREAD = {"t5": 0.3, "bart": 0.7, "whisper": 0.7}
EXAMPLES = {
    "input_ids": torch.full((2, 7), 5),
    "attention_mask": torch.ones(2, 7, dtype=torch.int64),
    "input_features": torch.ones(2, 8, 32),
    "decoder_input_ids": torch.full((2, 5), 6),
}


class _Plain(torch.nn.Module):
    """Named tensors in, logits out, no cache."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **feeds: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**feeds, use_cache=False).logits}


@dataclasses.dataclass(frozen=True)
class TinySeq2Seq:
    """A model, and the folder that its export lies in."""

    model: GenerationMixin
    folder: Path

    def greedy(self, count: int, start: list[int] | None = None, **feeds: np.ndarray) -> list[list]:
        """New tokens of each row, an end of text included, as Transformers generates them."""
        given = {name: torch.from_numpy(array) for name, array in feeds.items()}
        rows = next(iter(given.values())).shape[0]
        begun = 1
        if start is not None:
            given["decoder_input_ids"], begun = torch.tensor([start] * rows), len(start)
        # Not `model.generate`, which for Whisper cuts and judges speech besides.
        found = GenerationMixin.generate(
            self.model, **given, do_sample=False, max_new_tokens=count
        ).tolist()
        return [_until(row[begun:], self.model.generation_config.eos_token_id) for row in found]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def make(kind: str, folder: Path) -> TinySeq2Seq:
    """Make a model of `KINDS`, and write its export, configuration and tokenizer to `folder`.

    The end of T5's texts is a token that one of them comes to, and stands in `config.json` only;
    BART's `generation_config.json` forces a first token.
    """
    name, config, options, inputs = KINDS[kind]
    torch.manual_seed(2)
    model = getattr(transformers, name)(getattr(transformers, config)(**options)).eval()
    for weight in model.parameters():
        if weight.dim() > 1:  # as they start out, all of them would say one word only
            weight.data = torch.randn_like(weight) * SPREAD[kind]
    tiny = TinySeq2Seq(model, folder)
    model.generation_config.begin_suppress_tokens = None
    if kind == "t5":
        model.generation_config.eos_token_id = None
        said = tiny.greedy(8, input_ids=np.array([[44, 45, 1]]))[0]
        model.config.eos_token_id = model.generation_config.eos_token_id = said[2]
    if kind == "bart":
        model.generation_config.forced_bos_token_id = FORCED
        model.generation_config.save_pretrained(folder)
    (folder / "config.json").write_text(model.config.to_json_string())
    example = {name: EXAMPLES[name] for name in (*inputs, "decoder_input_ids")}
    source = Source(kind, Kind.MODULE, _Plain(model).eval(), example, ("logits",))
    save_model(to_onnx(source, 18), folder / "model.onnx")
    _save_tokenizer(folder)
    return tiny


def _save_tokenizer(folder: Path) -> None:
    """A token for each character from the space on; a text ends with `</s>`."""
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    characters = [chr(ord(" ") + index) for index in range(VOCABULARY - len(special))]
    vocabulary = {text: index for index, text in enumerate([*special, *characters])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
