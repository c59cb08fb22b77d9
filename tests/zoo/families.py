"""Small seeded models of many families, and their export.

Nothing in optc knows these names: a family that does not fuse is a missing equivalence.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 96
_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
}
_DECODER = _COMMON | {"max_position_embeddings": 64, "intermediate_size": 48}
_GROUPED = _DECODER | {"num_key_value_heads": 2}
_PLACES = {"max_position_embeddings": 64}
LAYERS = 2


@dataclasses.dataclass(frozen=True)
class Family:
    """A family: its configuration class in transformers and the arguments of a small one.

    Attributes:
        config: Name of the configuration class.
        options: Its arguments.
        causal: Whether it is a decoder with a language-model head.
        window: Windows of its attention layers, in order; 0 for none.
        softcap: Bound of the attention scores.
        mask: Kind of mask that is left after causality is recognised.
        key_heads: Heads of keys and values.
    """

    config: str
    options: dict[str, Any]
    causal: bool = True
    window: tuple[int, ...] = (0, 0)
    softcap: float = 0.0
    mask: str = ""
    key_heads: int = 4


FAMILIES = {
    "gpt2": Family(
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64},
    ),
    "llama": Family("LlamaConfig", _GROUPED, key_heads=2),
    "qwen2": Family("Qwen2Config", _GROUPED, key_heads=2),
    "qwen3": Family("Qwen3Config", _GROUPED | {"head_dim": 8}, key_heads=2),
    "mistral": Family(
        "MistralConfig", _GROUPED | {"sliding_window": 8}, key_heads=2, window=(8, 8)
    ),
    "phi3": Family(
        "Phi3Config",
        _GROUPED | {"pad_token_id": 0, "partial_rotary_factor": 0.5},
        key_heads=2,
    ),
    "gemma2": Family(
        "Gemma2Config",
        _GROUPED | {"head_dim": 8, "sliding_window": 8},
        key_heads=2,
        window=(8, 0),
        softcap=50.0,
    ),
    "opt": Family("OPTConfig", _COMMON | _PLACES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt_neox": Family("GPTNeoXConfig", _DECODER),
    "bloom": Family(
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
        mask="bias",
    ),
    "falcon": Family("FalconConfig", _COMMON | {"multi_query": True}, key_heads=1),
    "bert": Family("BertConfig", _DECODER, causal=False),
    "distilbert": Family(
        "DistilBertConfig",
        _PLACES
        | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCABULARY},
        causal=False,
    ),
}


class _Logits(torch.nn.Module):
    """One input, one output, no cache."""

    def __init__(self, model: torch.nn.Module, causal: bool):
        super().__init__()
        self.model = model
        self.causal = causal

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self.causal:
            return self.model(input_ids=input_ids, use_cache=False).logits
        return self.model(input_ids=input_ids).last_hidden_state


def make(family: Family, attention: str) -> torch.nn.Module:
    """The model with seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM if family.causal else transformers.AutoModel
    config = getattr(transformers, family.config)(**family.options)
    model = auto.from_config(config, attn_implementation=attention)
    return _Logits(model.eval(), family.causal).eval()


def export(module: torch.nn.Module, path: Path, opset: int) -> Path:
    """Write the module as ONNX, batch and sequence dynamic."""
    free = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.ones(2, 5, dtype=torch.long),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={"input_ids": {0: free, 1: free}},
            input_names=["input_ids"],
            output_names=["logits"],
            verbose=False,
        )
        program.save(path)
    return path
