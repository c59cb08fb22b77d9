"""Folders for optimum's `ORTModelForCausalLM`: configurations as transformers reads them.

Of `config.json` optimum uses the sizes of the cache, which it works out from the family, the hidden
size and the numbers of heads; several families have rules of their own there. So the file says
`llama`, the family without such rules, and gives numbers that lead to the engine's sizes, whatever
the model is. What the source said lies beside it as `source_config.json`.

Source: `optimum/onnxruntime/modeling_decoder.py` of optimum-onnx 0.1.0.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optc.api.package_facts import Facts, write_json
from optc.core.errors import UnsupportedError
from optc.runtime.tokenizer import has_tokenizer
from optc.targets.ort_mask import take_mask

__all__ = ["for_optimum"]

_FAMILY = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def for_optimum(model: ir.Model, facts: Facts, folder: Path) -> None:
    """Change the engine in place, and write all files beside it into `folder`.

    Raises:
        UnsupportedError: The cache is static: optimum begins with an empty one.
    """
    if facts.capacity is not None:
        problem = f"its cache always holds {facts.capacity} tokens, and optimum begins with none"
        remedy = "build it with kv:layout=concat"
        raise UnsupportedError(problem, where="--for optimum", remedy=remedy)
    take_mask(model, any_padding=True, positions=True, shared=False)
    own = ("config.json", "generation_config.json", "tokenizer_config.json")
    facts.copy_tokenizer(folder, without=own)
    write_json(folder / "config.json", _config(facts))
    write_json(folder / "generation_config.json", _generation(facts))
    if facts.folder is not None and has_tokenizer(facts.folder):
        write_json(folder / "tokenizer_config.json", _tokenizer(facts))
    if facts.config and facts.folder is not None:
        shutil.copyfile(facts.folder / "config.json", folder / "source_config.json")


def _config(facts: Facts) -> dict[str, Any]:
    return {
        **_FAMILY,
        **_tokens(facts),
        "hidden_size": facts.heads * facts.dim,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.heads,
        "num_hidden_layers": facts.layers,
        "vocab_size": facts.vocabulary,
        "max_position_embeddings": facts.context,
    }


def _generation(facts: Facts) -> dict[str, Any]:
    return {**facts.read("generation_config.json"), **_tokens(facts)}


def _tokens(facts: Facts) -> dict[str, Any]:
    found = {"eos_token_id": list(facts.eos) or None, "bos_token_id": facts.bos}
    return {"pad_token_id": facts.pad, **{k: v for k, v in found.items() if v is not None}}


def _tokenizer(facts: Facts) -> dict[str, Any]:
    """The tokenizer's configuration, for generation, and for the transformers that optimum needs.

    transformers 5 writes a class that 4 has not, and both are the same backend. `generate` refuses
    `token_type_ids`, which the class returns unless it is told not to.
    """
    found = facts.read("tokenizer_config.json")
    if found.get("tokenizer_class", "TokenizersBackend") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    found.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return {**found, "padding_side": "left"}
