"""Tiny models, made here: random weights, a vocabulary of 128, saved the way users' models are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

VOCABULARY = 128
CHAT = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<model>"


@pytest.fixture(scope="session")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their import-time deprecations are not ours
        pytest.importorskip("torch")
        return pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models only lose by a second thread, and much on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_tokenizer(transformers: Any) -> Any:
    """A byte-level BPE of 128 tokens, trained on our own sample text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from optc.frontend.paragraphs import load_texts

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<end>", "<user>", "<model>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special)
    tokenizer.train_from_iterator(load_texts().judged, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=CHAT
    )


@pytest.fixture(scope="session")
def llama(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a causal LM and its tokenizer."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    build_tokenizer(transformers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and its tokenizer."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    config = transformers.BertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=160,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    build_tokenizer(transformers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gguf_file(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer Llama in float32 with a byte-pair tokenizer, as a GGUF file."""
    import numpy as np

    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = ["<end>", *map(chr, range(33, 127)), "Ġ", "th", "Ġth"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["t h", "Ġ th"])
    writer.add_eos_token_id(0)
    block = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    block |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}
    block |= {"attn_norm": (32,), "ffn_norm": (32,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {"token_embd.weight": (len(tokens), 32), "output.weight": (len(tokens), 32)}
    shapes |= {"output_norm.weight": (32,)}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
