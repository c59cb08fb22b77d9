"""Olive: `run_olive.py PASS:BITS:BLOCK MODEL.onnx CALIBRATION.npz OUT.onnx`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx import rtn_quantization

# What the products compute in: int8.
ACCURACY_LEVEL = 4
PASSES = {"rtn": rtn_quantization.OnnxBlockWiseRtnQuantization}

(name, bits, block), (model, _, out) = sys.argv[1].split(":"), map(Path, sys.argv[2:])
out.parent.mkdir(parents=True, exist_ok=True)
options = {
    "bits": int(bits),
    "block_size": int(block),
    "is_symmetric": False,
    "accuracy_level": ACCURACY_LEVEL,
    "save_as_external_data": True,
}
chosen = create_pass_from_dict(
    PASSES[name], options, disable_search=True, accelerator_spec=DEFAULT_CPU_ACCELERATOR
)
chosen.run(ONNXModelHandler(str(model)), str(out))
