"""Calibration text that a language model writes itself.

What a model was trained on is not at hand, and a few paragraphs are few for methods that learn from
second moments. Text drawn from the model's own distribution is like what it will see in use
(LLM-QAT, Liu et al., 2023, arXiv 2305.17888; self-calibration, Williams et al., 2024, arXiv
2410.17170), for any language and any field, and needs no download.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from optc.core.context import Array, Progress

__all__ = ["written"]


def written(
    model: Any, starts: Array, length: int, rng: np.random.Generator, progress: Progress
) -> Array:
    """Continue texts by tokens drawn from the model's distribution at temperature 1.

    Args:
        model: A causal language model of transformers, float32, in eval mode.
        starts: Token ids that the texts begin with, int64 [N,n], n > 0.
        length: Tokens of each text in the end.
        rng: What is drawn follows from it.
        progress: Told after each token.

    Returns:
        The texts, int64 [N,length].
    """
    takes_cache = "past_key_values" in inspect.signature(model.forward).parameters
    text, cache = torch.from_numpy(starts), None
    first = starts.shape[1]
    with torch.inference_mode():
        for place in range(first, length):
            new = text if cache is None else text[:, -1:]
            state = {"past_key_values": cache, "use_cache": True} if takes_cache else {}
            answer = model(input_ids=new, **state)
            logits = answer.logits[:, -1].float().numpy()
            # the largest of logits with Gumbel noise is a draw from their softmax
            drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
            cache = answer.past_key_values if takes_cache else None
            text = torch.cat([text, torch.from_numpy(drawn)[:, None]], dim=1)
            progress("writing calibration text", place - first + 1, length - first)
    found: Array = text.numpy().astype(np.int64)
    return found
