"""Write a model: weights streamed one at a time into one file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from optc.core.errors import OutputError

__all__ = ["ALIGNED_FROM", "ALIGNMENT", "save_model"]

ALIGNMENT = 4096
"""Large weights begin at multiples of so many bytes, a page: a runtime may map them one by one."""

ALIGNED_FROM = 1 << 20
"""Weights of more bytes are large."""


def save_model(model: ir.Model, path: str | Path) -> Path:
    """Write `model` to `path`, its weights to `path` with `.data` appended.

    Raises:
        OutputError: The folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(
            model,
            path,
            external_data=f"{path.name}.data",
            alignment=ALIGNMENT,
            align_threshold=ALIGNED_FROM,
        )
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    return path
