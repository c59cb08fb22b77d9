"""Files as other tools leave them."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
from exporting import quiet

__all__ = ["rewrite"]


def rewrite(path: Path, tool: str) -> Path:
    """Run `tool` on the file; the result lies beside it."""
    made = path.with_suffix(f".{tool}.onnx")
    with quiet():
        {"onnxslim": _slim, "onnxsim": _simplify, "onnxruntime": _basic}[tool](path, made)
    return made


def _slim(path: Path, made: Path) -> None:
    import onnxslim

    onnxslim.slim(str(path), str(made))


def _simplify(path: Path, made: Path) -> None:
    import onnxsim

    model, _ = onnxsim.simplify(str(path))
    onnx.save(model, made)


def _basic(path: Path, made: Path) -> None:
    """What ONNX Runtime does that does not depend on the hardware, constants folded included."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(made)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options)
