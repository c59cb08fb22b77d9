"""What a build reports that was asked to compare nothing: all but how far the numbers moved."""

from __future__ import annotations

import math

import onnx_ir as ir

from optc.core.base import Pass, Promise
from optc.core.hooks import Hook, Step, peak_rss_bytes
from optc.parity.hook import weight_bytes
from optc.parity.metrics import Metrics
from optc.parity.rows import INPUT, Row

__all__ = ["UNMEASURED", "UnmeasuredHook"]

UNMEASURED = Metrics(
    math.nan,
    math.nan,
    math.nan,
    notes=("nothing was compared: what the passes did to the numbers is not known",),
)
"""Metrics where nothing was compared."""


class UnmeasuredHook(Hook):
    """Takes the place of `CompareHook`: notes what each pass did, and runs nothing.

    Attributes:
        rows: One row for the input graph and one per pass.
        violations: None; nothing was judged.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.violations: list[str] = []
        self._prefix: str | None = None

    def fork(self, label: str) -> UnmeasuredHook:
        """A hook for other passes over the graph as it is now; see `CompareHook.fork`."""
        other = UnmeasuredHook()
        other._prefix = label
        return other

    def start(self, model: ir.Model) -> None:
        """Note the size of the graph as it came."""
        if self._prefix is not None:
            return
        size, peak = weight_bytes(model), peak_rss_bytes()
        row = Row(INPUT, INPUT, Promise.EXACT, UNMEASURED, size=size, peak_rss=peak)
        self.rows.append(row)

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        """Note what the pass did."""
        size, prefix = weight_bytes(model), self._prefix or ""
        row = Row.of_pass(p, step, size, prefix, UNMEASURED)
        self.rows.append(row)
