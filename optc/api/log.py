"""Tell people what each pass did, while the build goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx_ir as ir

from optc.core.base import Pass
from optc.core.context import Log, Progress
from optc.core.hooks import Hook, Step

__all__ = ["LogHook", "stage"]


@contextlib.contextmanager
def stage(progress: Progress, what: str) -> Iterator[None]:
    """Report a step that cannot say how far it is: begun, and done."""
    progress(what, 0, 1)
    yield
    progress(what, 1, 1)


class LogHook(Hook):
    """One line for each pass, its notes, and what it left alone."""

    def __init__(self, log: Log):
        self._log = log

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        """Tell about one pass."""
        result = step.result
        self._log(f"{step.text}: {result.rewrites} rewritten in {step.seconds:.1f} s")
        for note in result.notes:
            self._log(f"  {note}")
        if result.refusals:
            first, more = result.refusals[0], len(result.refusals) - 1
            tail = f" (and {more} more)" if more else ""
            self._log(f"  left alone: {first.site}: {first.reason}{tail}")
