"""Run a folder on optimum: a request on stdin, an answer on stdout, both in JSON.

Runs in the environment of `make test-ecosystem`, without optc. Request: `prompts` (token ids),
`new` (tokens wanted), `texts` (for the tokenizer), `chat` (for its template).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer


def padded(prompts: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Rows with padding in front, as `generate` wants them."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(row)) + row for row in prompts]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generate(model: ORTModelForCausalLM, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Greedy new tokens of each row."""
    inputs = padded(prompts, model.generation_config.pad_token_id)
    found = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    rows: list[list[int]] = found[:, inputs["input_ids"].shape[1] :].tolist()
    return rows


def chunked(model: ORTModelForCausalLM, prompt: list[int], chunk: int) -> dict[str, Any]:
    """The likeliest token at every place: in one call, and in chunks with the cache handed on."""
    ids = torch.tensor([prompt])
    whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.argmax(-1)
    past, parts = None, []
    for start in range(0, len(prompt), chunk):
        new = ids[:, start : start + chunk]
        mask = torch.ones_like(ids[:, : start + new.shape[1]])
        found = model(input_ids=new, attention_mask=mask, past_key_values=past)
        past = found.past_key_values
        parts.append(found.logits.argmax(-1))
    return {"whole": whole.tolist(), "chunked": torch.cat(parts, 1).tolist()}


def tokenized(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Ids of texts, alone and in a batch, and of a conversation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(request["texts"], padding=True, return_tensors="pt")
    messages = [{"role": "user", "content": request["chat"]}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return {
        "ids": [tokenizer(text)["input_ids"] for text in request["texts"]],
        "mask": batch["attention_mask"].tolist(),
        "inputs": sorted(batch),
        "chat": chat,
    }


def main() -> None:
    """Answer one request."""
    folder, request = sys.argv[1], json.load(sys.stdin)
    model = ORTModelForCausalLM.from_pretrained(folder)
    prompts, new = request["prompts"], request["new"]
    bound = ORTModelForCausalLM.from_pretrained(folder, use_io_binding=True)
    answer = {
        "alone": [generate(model, [prompt], new)[0] for prompt in prompts],
        "batch": generate(model, prompts, new),
        "bound": generate(bound, prompts, new),
        **chunked(model, prompts[-1], 3),
    }
    if "texts" in request:
        answer["tokenizer"] = tokenized(folder, request)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
