"""Llama graphs of any size with random weights, as `optc export` writes them, straight to disk.

    python benchmarks/llama_graph.py 0.5|1|3|8 FOLDER [--dtype float16|bfloat16]

The graph comes from PyTorch's exporter, which is given tensors without data. Weights are written in
blocks: nothing that grows with the model is in memory. They are normally distributed, and many: a
table of a million numbers is read from a different place for each block.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from optc.frontend.quiet import quiet
from optc.frontend.simplify import simplify
from optc.frontend.wrap import NamedModule
from optc.ir.save import save_model
from optc.ir.streamed import StreamedTensor, sizes
from optc.ir.transposed import fold_transposed_weights

SIZES = {
    "tiny": LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=512,
        tie_word_embeddings=True,
    ),
    "0.5": LlamaConfig(
        hidden_size=1280,
        intermediate_size=3584,
        num_hidden_layers=24,
        num_attention_heads=20,
        num_key_value_heads=5,
        vocab_size=64000,
        tie_word_embeddings=True,
    ),
    # The two small ones of Llama 3.2, and the 8 B of Llama 3.
    "1": LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=True,
    ),
    "3": LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=True,
    ),
    "8": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
}
_TABLE = 1 << 20
_SMALL = 1024


def parameters(config: LlamaConfig) -> int:
    """How many weights a model has."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    products = 2 * hidden**2 * (1 + config.num_key_value_heads / heads)
    layer = int(products) + 3 * hidden * config.intermediate_size + 2 * hidden
    tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * hidden
    return config.num_hidden_layers * layer + tables + hidden


def write_llama(config: LlamaConfig, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write `model.onnx` with its weights beside it, and `config.json`.

    Args:
        config: Sizes.
        folder: Where; made if missing.
        dtype: Element type of the weights.

    Returns:
        Path of `model.onnx`.
    """
    model = _translated(config, dtype)
    _give_data(model.graph, LlamaRotaryEmbedding(config).inv_freq.numpy())
    weights = _set_aside(model.graph)
    simplify(model)
    _put_back(model.graph, weights)
    # What the exporter's optimiser does to weights that have data.
    fold_transposed_weights(model, _SMALL)
    _fill(model.graph)
    path = save_model(model, Path(folder) / "model.onnx")
    config.save_pretrained(folder)
    return path


def _translated(config: LlamaConfig, dtype: torch.dtype) -> ir.Model:
    """The graph, with weights that have no data."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode(), quiet(), torch.no_grad():
            module = LlamaForCausalLM(config).eval()
            named = NamedModule(module, ("input_ids",), ("logits",), {"use_cache": False}).eval()
            program = torch.onnx.export(
                named,
                (torch.zeros(2, 5, dtype=torch.int64),),
                dynamo=True,
                verbose=False,
                opset_version=18,
                dynamic_shapes=(({0: "batch", 1: "sequence"},),),
                input_names=["input_ids"],
                output_names=["logits"],
                optimize=False,
            )
    finally:
        torch.set_default_dtype(usual)
    return program.model


def _give_data(graph: ir.Graph, frequencies: np.ndarray) -> None:
    """Give data to norms (ones) and to rotary embeddings; weights get a place for it."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if not isinstance(getattr(tensor, "raw", None), torch.Tensor):
            continue
        shape = [int(size) for size in tensor.shape]
        if len(shape) == 2:
            value.const_value = StreamedTensor(_nothing, tensor.dtype, shape)
        elif shape == list(frequencies.shape) and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.Tensor(frequencies, name=value.name)
        else:
            ones = np.ones(shape, tensor.dtype.numpy())
            value.const_value = ir.Tensor(ones, dtype=tensor.dtype, name=value.name)


def _nothing(rows: slice, columns: slice) -> np.ndarray:
    raise ValueError("this weight has no data yet")


def _fill(graph: ir.Graph) -> None:
    """Fill weights with random numbers."""
    table = np.random.default_rng(0).standard_normal(_TABLE, np.float32)
    for index, value in enumerate(graph.initializers.values()):
        if isinstance(value.const_value, StreamedTensor):
            value.const_value = _random(table, index, value.const_value)
            value.const_value.name = value.name


def _random(table: np.ndarray, seed: int, like: StreamedTensor) -> StreamedTensor:
    """Numbers as large as those of trained layers, about one over the root of a side."""
    shape, columns = sizes(like), sizes(like)[1]
    kind = like.dtype.numpy()
    scaled = (table * min(shape) ** -0.5).astype(kind)

    def part(rows: slice, which: slice) -> np.ndarray:
        first, last, _ = rows.indices(shape[0])
        block = np.empty((last - first, columns), kind)
        for row in range(first, last):
            start = hash((seed, row)) % (_TABLE - columns)
            block[row - first] = scaled[start : start + columns]
        return block[:, which]

    return StreamedTensor(part, like.dtype, shape)


def _set_aside(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Make weights inputs, so that no optimisation reads them."""
    large = {}
    for name, value in list(graph.initializers.items()):
        if isinstance(value.const_value, StreamedTensor):
            large[name] = value.const_value
            value.const_value = None
            del graph.initializers[name]
            graph.inputs.append(value)
    return large


def _put_back(graph: ir.Graph, large: dict[str, ir.TensorProtocol]) -> None:
    for value in list(graph.inputs):
        if value.name in large:
            graph.inputs.remove(value)
            value.const_value = large[value.name]
            graph.register_initializer(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    given = parser.parse_args()
    config = SIZES[given.size]
    path = write_llama(config, given.folder, getattr(torch, given.dtype))
    print(f"{path}: {parameters(config) / 1e9:.2f} billion parameters")


if __name__ == "__main__":
    main()
