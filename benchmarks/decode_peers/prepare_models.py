"""The models of `decode_cpu.py` as Hugging Face folders and GGUF files, float32.

    python prepare_models.py smollm2|llama FOLDER

`smollm2` is SmolLM2-135M-Instruct; `llama` has 125 million random weights: 12 layers, width 768, 12
query and 4 key heads, untied tables of 32000 tokens.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import tokenizers
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[2]
LLAMA = LlamaConfig(
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    vocab_size=32000,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)


def smollm2_file() -> Path:
    """SmolLM2's weights, downloaded once."""
    command = [sys.executable, str(ROOT / "examples" / "fetch_smollm2.py")]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def smollm2() -> LlamaForCausalLM:
    """SmolLM2, out of its GGUF file."""
    path = smollm2_file()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    # What is left of the quantised file would be written into the configuration.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def llama() -> LlamaForCausalLM:
    """Random weights, the same at every run."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA)


def words() -> PreTrainedTokenizerFast:
    """A tokenizer for the random model: the words of our documentation, in alphabetical order."""
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md")))
    found = ["<unk>", "<s>", "</s>", *sorted(set(re.findall(r"\w+|[^\w\s]", text)))]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            dict(zip(found, range(LLAMA.vocab_size), strict=False)), "<unk>"
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save(which: str, folder: Path) -> None:
    """`hf/` and `f32.gguf`."""
    model = smollm2() if which == "smollm2" else llama()
    model.eval().save_pretrained(folder / "hf")
    config = folder / "hf" / "config.json"
    written = json.loads(config.read_text(encoding="utf-8"))
    # Where transformers before version 5 look for it.
    written["rope_theta"] = model.config.rope_parameters["rope_theta"]
    config.write_text(json.dumps(written, indent=2), encoding="utf-8")
    tokenizer = words()
    if which == "smollm2":
        path = smollm2_file()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.save_pretrained(folder / "hf")
    write_gguf(model, folder / "f32.gguf")


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """A GGUF file without a tokenizer: requests are token ids."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = _rotated_heads(name, model)
        whole = _interleaved(tensor, heads) if heads else tensor
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, name
        writer.add_tensor(target, whole.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rotated_heads(name: str, model: LlamaForCausalLM) -> int:
    found = re.search(r"self_attn\.([qk])_proj", name)
    if found is None:
        return 0
    config = model.config
    return config.num_attention_heads if found[1] == "q" else config.num_key_value_heads


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbours (2i, 2i+1), Hugging Face halves (i, i + dim/2)."""
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)


if __name__ == "__main__":
    which, folder = sys.argv[1:]
    save(which, Path(folder))
