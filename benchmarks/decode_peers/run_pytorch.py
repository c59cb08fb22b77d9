"""PyTorch, eager or compiled: `run_pytorch.py FOLDER THREADS eager|compile`."""

from __future__ import annotations

import sys

import torch
from serve import Emit, serve
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

folder, threads, mode = sys.argv[1:]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def step(ids: torch.Tensor, cache: object, positions: torch.Tensor) -> torch.Tensor:
    """Logits after the last token, [1,1,V]."""
    return model(
        input_ids=ids, past_key_values=cache, position_ids=positions, logits_to_keep=1
    ).logits


decode = torch.compile(step) if mode == "compile" else step


@torch.inference_mode()
def generate(prompt: list[int], new_tokens: int, emit: Emit) -> None:
    """Prefill and decode with the library's own caches."""
    room = len(prompt) + new_tokens
    static = mode == "compile"
    cache = StaticCache(config=model.config, max_cache_len=room) if static else DynamicCache()
    ids, at, run = torch.tensor([prompt]), 0, step
    for _ in range(new_tokens):
        positions = torch.arange(at, at + ids.shape[1])[None]
        token = int(run(ids, cache, positions)[0, -1].argmax())
        emit(token)
        at, ids, run = at + ids.shape[1], torch.tensor([[token]]), decode


serve(generate, f"torch {torch.__version__}")
