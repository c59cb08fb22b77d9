"""onnxruntime-genai: `run_genai.py FOLDER THREADS`."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import onnxruntime_genai as genai
from serve import Emit, serve

folder, threads = sys.argv[1:]
path = Path(folder) / "genai_config.json"
settings = json.loads(path.read_text())
settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = int(threads)
# All contenders go on to the last token, so the end of a text must be one that does not come.
settings["model"]["eos_token_id"] = settings["model"]["vocab_size"] - 1
path.write_text(json.dumps(settings, indent=4))
model = genai.Model(folder)


def generate(prompt: list[int], new_tokens: int, emit: Emit) -> None:
    """The library's own loop, with its shared cache buffers."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + new_tokens, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens([prompt])
    for _ in range(new_tokens):
        generator.generate_next_token()
        emit(int(generator.get_next_tokens()[0]))


serve(generate, f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}")
