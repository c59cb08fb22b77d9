"""NVIDIA Model Optimizer: `run_modelopt.py MODE:METHOD[:BLOCK] MODEL CALIBRATION.npz OUT.onnx`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from calibration import sequences
from modelopt.onnx.quantization import quantize

(mode, method, *block), (model, calibration, out) = sys.argv[1].split(":"), map(Path, sys.argv[2:])
out.parent.mkdir(parents=True, exist_ok=True)
feeds = sequences(calibration)
options: dict[str, Any] = {"block_size": int(block[0])} if block else {}
quantize(
    str(model),
    quantize_mode=mode,
    calibration_method=method,
    calibration_data={name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]},
    calibration_eps=["cpu"],
    high_precision_dtype="fp32",
    use_external_data_format=True,
    output_path=str(out),
    **options,
)
