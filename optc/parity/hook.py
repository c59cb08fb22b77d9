"""`CompareHook`: after every pass, run the graph and hold it against the reference and the policy.

How a pass is judged:

1. The input graph is the first row. It must satisfy the exact limits, whatever passes follow: an
   export that is not the reference's model is not worth optimising, and a loose limit further on
   must not hide it.
2. A pass that promises exactness is held against the reference by the exact limits, as long as the
   graph before it satisfied them.
3. Once it did not (a measured pass ran, or the input graph itself was let through by force), an
   exact pass is held against the outputs of the graph before it. The row still shows the distance
   to the reference.
4. A measured pass is held against the reference by the measured limits.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager

import onnx_ir as ir

from optc.core.base import Pass, Promise
from optc.core.context import Progress, no_progress
from optc.core.errors import NotEnoughMemoryError, ParityError, PassContractError, UnsupportedError
from optc.core.hooks import Hook, Step, peak_rss_bytes
from optc.core.session import Session
from optc.ir.reference import Reference
from optc.parity.baseline import Baseline
from optc.parity.compare import compare
from optc.parity.metrics import Metrics
from optc.parity.policy import Policy
from optc.parity.rows import INPUT, Row

__all__ = ["CompareHook", "OpenModel", "weight_bytes"]

OpenModel = Callable[[ir.Model], AbstractContextManager[Session]]
_Measured = tuple[Metrics, Metrics | None]


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, each tensor once; no weight is loaded for it."""
    tensors = {
        id(value.const_value): value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    }
    return sum(tensors.values())


class CompareHook(Hook):
    """Measures the input graph and the graph after each pass.

    Args:
        open_model: Opens a graph as a session.
        reference: What to compare with.
        policy: What is acceptable; None to measure only.
        force: Collect violations instead of raising.
        progress: Told about each sample and greedy step.

    Attributes:
        rows: One row for the input graph and one per pass.
        violations: Sentences, each with the name of its pass in front; filled when `force` is on.
    """

    def __init__(
        self,
        open_model: OpenModel,
        reference: Reference,
        policy: Policy | None,
        *,
        force: bool = False,
        progress: Progress = no_progress,
    ):
        self.rows: list[Row] = []
        self.violations: list[str] = []
        self._open = open_model
        self._reference = reference
        self._policy = policy
        self._force = force
        self._progress = progress
        self._exact_so_far = True
        self._baseline: Baseline | None = None
        self._prefix: str | None = None

    def fork(self, label: str) -> CompareHook:
        """A hook for other passes over the graph as it is now, which was measured already.

        Args:
            label: What stands before the names of its rows.
        """
        other = copy.copy(self)
        other.rows, other.violations = [], []
        other._prefix = label
        return other

    def start(self, model: ir.Model) -> None:
        """Measure the graph as it came, before any pass."""
        if self._prefix is not None:
            return
        with self._open(model) as session:
            metrics, _ = self._compare(session, None)
        violated = self._policy.violations(metrics, Promise.EXACT) if self._policy else []
        row = Row(
            name=INPUT,
            text=INPUT,
            promise=Promise.EXACT,
            metrics=metrics,
            size=weight_bytes(model),
            peak_rss=peak_rss_bytes(),
            violations=tuple(violated),
        )
        self._finish(row, "the input graph", "check that the reference is of this model")

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        """Measure the graph that the pass left.

        Raises:
            ParityError: The pass broke its promise, or the graph cannot be run any more.
            NotEnoughMemoryError: The machine cannot hold its caches.
        """
        previous = self._baseline if p.promised == Promise.EXACT else None
        if p.promised != Promise.EXACT:
            self._exact_so_far = False
        metrics, change = self._measure(f"pass '{p.name}'", model, previous)
        prefix = self._prefix or ""
        violated = tuple(self._violated(p.promised, metrics, change))
        row = dataclasses.replace(
            Row.of_pass(p, step, weight_bytes(model), prefix, metrics),
            change=change,
            violations=violated,
        )
        self._finish(row, f"{prefix}pass '{p.name}'", "'optc bisect' finds the place")

    def _violated(self, promise: str, metrics: Metrics, change: Metrics | None) -> list[str]:
        if self._policy is None:
            return []
        if change is None:
            return self._policy.violations(metrics, promise)
        found = self._policy.violations(change, promise)
        return [f"against the graph before it, {sentence}" for sentence in found]

    def _measure(self, where: str, model: ir.Model, previous: Baseline | None) -> _Measured:
        """Distance to the reference, and to the graph before where that is what counts."""
        try:
            with self._open(model) as session:
                return self._compare(session, previous)
        except NotEnoughMemoryError:
            raise
        except (UnsupportedError, PassContractError) as error:
            raise ParityError(f"the graph does not run any more: {error}", where=where) from error

    def _compare(self, session: Session, previous: Baseline | None) -> _Measured:
        baseline = None if self._exact_so_far else Baseline(self._reference)
        metrics = compare(session, self._reference, tap=baseline, progress=self._progress)
        change = previous.compare(session, progress=self._progress) if previous else None
        if baseline is None and self._policy and self._policy.violations(metrics, Promise.EXACT):
            self._exact_so_far = False
            baseline = Baseline(self._reference)
            compare(session, self._reference, tap=baseline, progress=self._progress)
        self._baseline = baseline
        return metrics, change

    def _finish(self, row: Row, where: str, remedy: str) -> None:
        self.rows.append(row)
        if not row.violations:
            return
        if not self._force:
            raise ParityError("; ".join(row.violations), where=where, remedy=remedy)
        self.violations += [f"{where}: {sentence}" for sentence in row.violations]
