"""Hooks run between passes: verify, compare, time, dump live here and not inside passes."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from typing import TYPE_CHECKING

from optc.core.base import Pass, PassResult

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Hook", "Step", "TimeHook", "peak_rss_bytes"]


@dataclasses.dataclass
class Step:
    """One executed pass.

    Attributes:
        text: Canonical text of the pass.
        result: What it reported.
        seconds: Wall-clock seconds inside the pass, hooks excluded.
        peak_rss: Peak resident memory of the process after the pass, in bytes.
    """

    name: str
    text: str
    result: PassResult
    seconds: float = 0.0
    peak_rss: int = 0


class Hook:
    """Base of all hooks; every method does nothing."""

    def start(self, model: ir.Model) -> None:
        """Called once, before the first pass."""

    def before(self, p: Pass, model: ir.Model) -> None:
        """Called before each pass."""

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        """Called after each pass; may raise to stop the pipeline."""


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class TimeHook(Hook):
    """Fills in seconds and peak memory of each step. Runs first of all hooks."""

    def __init__(self) -> None:
        self._started = 0.0

    def before(self, p: Pass, model: ir.Model) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        """Stop the clock."""
        step.seconds = time.perf_counter() - self._started
        step.peak_rss = peak_rss_bytes()
