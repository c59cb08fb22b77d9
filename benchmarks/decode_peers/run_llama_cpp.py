"""llama.cpp: `run_llama_cpp.py FILE.gguf THREADS`."""

from __future__ import annotations

import sys

import llama_cpp
from serve import Emit, serve

path, threads = sys.argv[1:]
model = llama_cpp.Llama(
    path,
    n_ctx=1024,
    n_batch=512,
    n_threads=int(threads),
    n_threads_batch=int(threads),
    verbose=False,
)


def generate(prompt: list[int], new_tokens: int, emit: Emit) -> None:
    """Greedy, from an empty cache."""
    model.reset()
    model._ctx.kv_cache_clear()
    ids = prompt
    for _ in range(new_tokens):
        model.eval(ids)
        token = int(model.sample(temp=0.0))
        emit(token)
        ids = [token]


serve(generate, f"llama-cpp-python {llama_cpp.__version__}")
