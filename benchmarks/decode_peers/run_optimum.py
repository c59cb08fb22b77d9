"""optimum: `run_optimum.py FOLDER THREADS onnx|openvino [PRECISION]`."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import torch
from serve import Emit, serve

folder, threads, runtime, *precision = sys.argv[1:]
torch.set_num_threads(int(threads))


def load() -> tuple[Any, str]:
    """The model, and the version of what runs it."""
    if runtime == "openvino":
        from optimum.intel import OVModelForCausalLM

        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        config |= {"INFERENCE_PRECISION_HINT": precision[0]} if precision else {}
        version = importlib.metadata.version("openvino")
        return OVModelForCausalLM.from_pretrained(folder, ov_config=config), f"openvino {version}"
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
    return model, f"optimum-onnx {importlib.metadata.version('optimum-onnx')}"


model, version = load()


@torch.inference_mode()
def generate(prompt: list[int], new_tokens: int, emit: Emit) -> None:
    """The model's own forward and its own cache, as its `generate` calls them."""
    ids, past = torch.tensor([prompt]), None
    mask = torch.ones_like(ids)
    for _ in range(new_tokens):
        positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :]
        found = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
        )
        past, token = found.past_key_values, int(found.logits[0, -1].argmax())
        emit(token)
        ids = torch.tensor([[token]])
        mask = torch.cat([mask, torch.ones_like(ids)], 1)


serve(generate, version)
