"""The model of `quant_quality.py`: SmolLM2-135M-Instruct with its channels in another order.

    python benchmarks/quant_model.py [FOLDER]        (default: build/quant/smollm2)

Its weights come out of a 4-bit file, so they lie on a grid that 4 bits with blocks of 32 along the
input channels reproduce almost exactly: such a quantiser would look better than it is. Permuted
channels compute the same function and break the grid, since a block then gathers values of many
blocks. Permuted are, always with the same seed: the hidden dimension, the channels of each
feed-forward layer, and the channels of each value head. The keys' and queries' channels stay: the
rotary embedding tells them apart.

Written are `hf/`, a Hugging Face folder, and `onnx/`, what `optc export` makes of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "quant" / "smollm2"
SEED = 20260501
# Of logits, whose size is of the order of 20. Products are float64 in the comparison, but norms and
# softmax are float32 in transformers, and their sums come in another order.
TOLERANCE = 1e-4


def permute(model: Any, seed: int = SEED) -> None:
    """Reorder the channels of a Llama in place; the function stays the same.

    Args:
        model: A `LlamaForCausalLM`, its tables tied or not.
        seed: Seed of the permutations.
    """
    draw = torch.Generator().manual_seed(seed)
    config = model.config
    hidden = torch.randperm(config.hidden_size, generator=draw)
    _select(model.model.embed_tokens, 1, hidden)
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        _select(model.lm_head, 1, hidden)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj):
            _select(reader, 1, hidden)
        for reader in (mlp.gate_proj, mlp.up_proj):
            _select(reader, 1, hidden)
        for vector in (layer.input_layernorm, layer.post_attention_layernorm):
            _select(vector, 0, hidden)
        for writer in (attention.o_proj, mlp.down_proj):
            _select(writer, 0, hidden)
        _permute_values(attention, config, draw)
        inner = torch.randperm(config.intermediate_size, generator=draw)
        _select(mlp.gate_proj, 0, inner)
        _select(mlp.up_proj, 0, inner)
        _select(mlp.down_proj, 1, inner)
    _select(model.model.norm, 0, hidden)


def _permute_values(attention: Any, config: Any, draw: torch.Generator) -> None:
    """Channels of each value head, and likewise of every query head that reads it."""
    heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    orders = [torch.randperm(dim, generator=draw) for _ in range(groups)]
    values = torch.cat([group * dim + order for group, order in enumerate(orders)])
    read = torch.cat([head * dim + orders[head * groups // heads] for head in range(heads)])
    _select(attention.v_proj, 0, values)
    _select(attention.o_proj, 1, read)


def _select(module: Any, axis: int, order: torch.Tensor) -> None:
    """Put a parameter's slices along `axis` into another order; a bias follows axis 0."""
    with torch.no_grad():
        module.weight.copy_(module.weight.index_select(axis, order))
        if axis == 0 and getattr(module, "bias", None) is not None:
            module.bias.copy_(module.bias.index_select(0, order))


def difference(one: Any, other: Any, ids: torch.Tensor) -> float:
    """Largest absolute difference of the logits of two models on ids [B,S], in float64 weights."""
    with torch.inference_mode():
        first, second = one.double()(ids).logits, other.double()(ids).logits
    one.float(), other.float()
    return float((first - second).abs().max())


def prepare(folder: Path = FOLDER) -> Path:
    """Make the model's files, unless they are there.

    Returns:
        The folder, with `hf/` and `onnx/model.onnx`.
    """
    if not (folder / "hf" / "config.json").is_file():
        _write_model(folder / "hf")
    if not (folder / "onnx" / "model.onnx").is_file():
        optc = Path(sys.executable).parent / "optc"
        command = [str(optc), "export", str(folder / "hf"), "-o", str(folder / "onnx")]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def _write_model(folder: Path) -> None:
    sys.path.append(str(Path(__file__).resolve().parent / "decode_peers"))
    from prepare_models import smollm2, smollm2_file
    from transformers import AutoTokenizer

    model, original = smollm2().eval(), smollm2().eval()
    permute(model)
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(model.config.vocab_size, (2, 64), generator=draw)
    found = difference(original, model, ids)
    if not 0 < found < TOLERANCE:
        sys.exit(f"permuted channels change the logits by {found:.1e}, at most {TOLERANCE} may")
    print(f"permuted channels change the logits by {found:.1e}", file=sys.stderr)
    file = smollm2_file()
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="where to put it")
    print(prepare(parser.parse_args().folder))
