"""Folders for onnxruntime-genai: `genai_config.json` beside the model.

It reads everything from that file, pads batches on the right, and with
`past_present_share_buffer` binds one buffer of `max_length` tokens as past and as present, which
the engine fills in place.

Source: onnxruntime-genai's documentation of `genai_config.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from optc.api.package_facts import Facts, write_json
from optc.ir.interface import LOGITS, TOKENS
from optc.targets.ort_mask import MASK, take_mask

__all__ = ["for_genai"]

CONFIG = "genai_config.json"
# Any decoder; the other types stand for families with inputs of their own.
_TYPE = "decoder"


def for_genai(model: ir.Model, facts: Facts, folder: Path) -> None:
    """Change the engine in place, and write all files beside it into `folder`."""
    take_mask(model, any_padding=False, positions=False, shared=True)
    facts.copy_tokenizer(folder, without=("config.json",))
    write_json(folder / CONFIG, _config(facts))


def _config(facts: Facts) -> dict[str, Any]:
    tokens = {"bos_token_id": facts.bos, "eos_token_id": list(facts.eos) or None}
    return {
        "model": {
            "type": _TYPE,
            "vocab_size": facts.vocabulary,
            "context_length": facts.context,
            "pad_token_id": facts.pad,
            **{name: found for name, found in tokens.items() if found is not None},
            "decoder": _decoder(facts),
        },
        "search": {
            "do_sample": False,
            "max_length": facts.context,
            "num_beams": 1,
            "past_present_share_buffer": True,
        },
    }


def _decoder(facts: Facts) -> dict[str, Any]:
    return {
        "filename": "model.onnx",
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.config.get("num_attention_heads", facts.heads),
        "num_key_value_heads": facts.heads,
        "head_size": facts.dim,
        "inputs": {
            "input_ids": TOKENS,
            "attention_mask": MASK,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
