"""A quantised GGUF file: `quantise_gguf.py F32.gguf OUT.gguf q8_0|q4_0`."""

from __future__ import annotations

import sys

import llama_cpp

source, target, kind = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
failed = llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters)
sys.exit(failed)
