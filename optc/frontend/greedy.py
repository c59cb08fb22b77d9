"""PyTorch's own greedy continuation, the one that exact passes must reproduce."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from optc.core.context import Array

__all__ = ["greedy"]


def greedy(model: Any, prompt: Array, steps: int) -> Array:
    """Continue a prompt by the most likely token, `steps` times.

    Continuations do not stop at an end-of-text token, so all have the same length. The model's
    own key-value cache is used where its forward takes one, else the whole text is run each time.

    Args:
        model: A causal language model of transformers, float32, in eval mode.
        prompt: Token ids, int64 [n], n > 0.
        steps: Number of tokens to add.

    Returns:
        The new tokens, int64 [steps].
    """
    takes_cache = "past_key_values" in inspect.signature(model.forward).parameters
    text = torch.from_numpy(prompt)[None]
    cache, found = None, []
    with torch.inference_mode():
        for _ in range(steps):
            if cache is None:
                answer = model(input_ids=text, **({"use_cache": True} if takes_cache else {}))
            else:
                answer = model(input_ids=text[:, -1:], past_key_values=cache, use_cache=True)
            token = answer.logits[:, -1].argmax(-1, keepdim=True)
            cache = answer.past_key_values if takes_cache else None
            text = torch.cat([text, token], dim=1)
            found.append(int(token))
    return np.array(found, dtype=np.int64)
