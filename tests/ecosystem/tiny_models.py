"""Small models of random weights, exported, built, and packaged for other runtimes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tokenizers
from ecosystem_runs import ask, optc
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

# A weight of usual size in so small a model gives logits too close to each other to choose from.
FACTORIES = """
import torch
from transformers import (
    GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
)

ENDS = {"eos_token_id": 256, "bos_token_id": None}

def made(kind, config):
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file="tokenizer.json", eos_token="<end>")
    return kind(config), tokenizer

def llama(heads=4, width=64):
    return made(LlamaForCausalLM, LlamaConfig(
        vocab_size=257, hidden_size=width, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.2, **ENDS))

def odd():  # heads of 12: not for ONNX Runtime's GroupQueryAttention
    return llama(heads=4, width=48)

def gpt2():  # learned positions
    return made(GPT2LMHeadModel, GPT2Config(
        vocab_size=257, n_embd=64, n_layer=2, n_head=4, n_positions=256,
        initializer_range=0.2, **ENDS))
"""
PROMPTS = ["the quick brown fox", "ab", "x = {1, 2, 3}"]
NEW = 24


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A bundle, what `optc run` writes with it, and its folders by runtime."""

    bundle: Path
    greedy: list[list[int]]

    def folder(self, runtime: str) -> Path:
        """The folder for a runtime; made on first use."""
        out = self.bundle.with_suffix(f".{runtime}")
        if not out.exists():
            optc(out.parent, "package", self.bundle.name, "--for", runtime, "-o", out.name)
        return out

    def ask(self, runtime: str) -> dict[str, object]:
        """What a runtime makes of the prompts; it goes on behind an end until the batch is done."""
        tokenizer = byte_tokenizer()
        ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
        return ask(runtime, self.folder(runtime), prompts=ids, new=NEW)


def byte_tokenizer() -> tokenizers.Tokenizer:
    """256 byte tokens, then <end>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return backend


def built(here: Path, kind: str, passes: str) -> Path:
    """A bundle of one of the models above, exported with PyTorch."""
    (here / "factories.py").write_text(FACTORIES)
    byte_tokenizer().save(str(here / "tokenizer.json"))
    optc(here, "export", f"factories:{kind}", "-o", kind, "--samples", "2")
    optc(here, "build", f"{kind}/model.onnx", "--passes", passes)
    return here / f"{kind}.optc"
