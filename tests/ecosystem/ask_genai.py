"""Run a folder on onnxruntime-genai: a request on stdin, an answer on stdout, in JSON.

Runs in the environment of `make test-ecosystem`, without optc. Request: `prompts` (token ids),
`new` (tokens wanted), `texts` (for the tokenizer), `chat` (for its template).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai


class Runs:
    """Greedy generation in several ways."""

    def __init__(self, folder: str, request: dict[str, Any]):
        self.model = genai.Model(folder)
        config = json.loads((Path(folder) / "genai_config.json").read_text())
        self.pad = config["model"]["pad_token_id"]
        self.prompts, self.new = request["prompts"], request["new"]

    def generator(self, prompts: list[list[int]], **search: Any) -> genai.Generator:
        """A generator of as many tokens as wanted, behind the longest prompt."""
        params = genai.GeneratorParams(self.model)
        length = max(map(len, prompts)) + self.new
        params.set_search_options(max_length=length, batch_size=len(prompts), **search)
        return genai.Generator(self.model, params)

    def finish(self, generator: genai.Generator, rows: int, skip: int) -> list[list[int]]:
        """Run to the end; the tokens behind the first `skip`."""
        while not generator.is_done():
            generator.generate_next_token()
        return [[int(t) for t in generator.get_sequence(row)][skip:] for row in range(rows)]

    def batch(self, prompts: list[list[int]], **search: Any) -> list[list[int]]:
        """All prompts at once, padded on the right as its tokenizer does."""
        width = max(map(len, prompts))
        rows = [row + [self.pad] * (width - len(row)) for row in prompts]
        generator = self.generator(prompts, **search)
        generator.append_tokens(np.array(rows, np.int32))
        return self.finish(generator, len(rows), width)

    def in_turns(self, prompt: list[int]) -> list[int]:
        """A prompt that comes in two pieces, as the turns of a conversation do."""
        generator = self.generator([prompt])
        half = len(prompt) // 2
        for piece in (prompt[:half], prompt[half:]):
            generator.append_tokens(np.array([piece], np.int32))
        return self.finish(generator, 1, len(prompt))[0]

    def rewound(self, prompt: list[int]) -> list[int]:
        """Some tokens written, taken back, and written again."""
        generator = self.generator([prompt])
        generator.append_tokens(np.array([prompt], np.int32))
        for _ in range(3):
            generator.generate_next_token()
        generator.rewind_to(len(prompt) - 1)
        generator.append_tokens(np.array([prompt[-1:]], np.int32))
        return self.finish(generator, 1, len(prompt))[0]


def tokenized(model: genai.Model, request: dict[str, Any]) -> dict[str, Any]:
    """Ids of texts, alone and in a batch, and of a conversation."""
    tokenizer = genai.Tokenizer(model)
    messages = json.dumps([{"role": "user", "content": request["chat"]}])
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return {
        "ids": [[int(t) for t in tokenizer.encode(text)] for text in request["texts"]],
        "batch": tokenizer.encode_batch(request["texts"]).as_numpy().tolist(),
        "chat": [int(t) for t in tokenizer.encode(chat)],
    }


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    runs = Runs(sys.argv[1], request)
    growing = {"past_present_share_buffer": False}
    answer = {
        "alone": [runs.batch([prompt])[0] for prompt in runs.prompts],
        "batch": runs.batch(runs.prompts),
        "growing": [runs.batch([prompt], **growing)[0] for prompt in runs.prompts],
        "growing_batch": runs.batch(runs.prompts, **growing),
        "in_turns": [runs.in_turns(prompt) for prompt in runs.prompts],
        "rewound": [runs.rewound(prompt) for prompt in runs.prompts],
    }
    if "texts" in request:
        answer["tokenizer"] = tokenized(runs.model, request)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
