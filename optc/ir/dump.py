"""Keep the graph after every pass, to look at."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from optc.core.base import Pass
from optc.core.hooks import Hook, Step
from optc.ir.readback import save_checked

__all__ = ["DumpHook"]


class DumpHook(Hook):
    """Writes `00-input/model.onnx`, then `NN-passname/model.onnx` after each pass.

    Args:
        folder: Where; made if missing. Each graph brings its weights.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._count = 0

    def start(self, model: ir.Model) -> None:
        """Write the graph as the first pass will see it."""
        self._count = 0
        self._write("input", model)

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        """Write the graph as the pass left it."""
        self._count += 1
        self._write(p.name, model)

    def _write(self, name: str, model: ir.Model) -> None:
        save_checked(model, self._folder / f"{self._count:02d}-{name}" / "model.onnx")
