"""Run the passes of a build, measured after each: for one engine, or for two out of one graph.

Passes run once up to the first that differs; from there on each engine's graph goes its own way.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from optc.api.log import LogHook
from optc.api.prefill import Prefill
from optc.core.base import Pass
from optc.core.context import Context, Log
from optc.core.errors import OptcError
from optc.core.hooks import Hook, TimeHook
from optc.core.pipeline import Pipeline
from optc.ir.dump import DumpHook
from optc.ir.verify import VerifyHook
from optc.parity.hook import CompareHook
from optc.parity.unmeasured import UnmeasuredHook

__all__ = ["LABEL", "run_passes"]

LABEL = "prefill: "
"""What stands before the names of passes that ran for the second engine."""

_Measure = CompareHook | UnmeasuredHook


def run_passes(
    graph: ir.Model,
    pipeline: Pipeline,
    prefill: Prefill | None,
    context: Context,
    measure: _Measure,
    *,
    dump_dir: Path | None,
    log: Log,
) -> ir.Model | None:
    """Run all passes for both engines, measured after each.

    Args:
        graph: Changed in place: what the first engine is made of.
        pipeline: Its passes.
        prefill: The second engine, if there is to be one.
        context: Surroundings of the passes.
        measure: Looks at every graph; rows of both are in it at the end.
        dump_dir: Folder that gets every graph.
        log: Told about each pass.

    Returns:
        What the second engine is made of; None if there is none.
    """
    log(f"passes, in the order they run: {pipeline}")
    dump = [] if dump_dir is None else [DumpHook(dump_dir)]
    fork = None if prefill is None else _Fork(prefill, context, measure)
    hooks = [*([fork] if fork else []), TimeHook(), *dump, VerifyHook(), LogHook(log), measure]
    pipeline.run(graph, context, hooks)
    if prefill is None or fork is None or fork.found is None:
        return None
    other, judge = fork.found
    at = [p.name for p in prefill.pipeline.passes].index(prefill.first)
    rest = Pipeline(prefill.pipeline.passes[at:], prefill.pipeline.allow_noop)
    log(f"for prefill, over the graph before '{prefill.first}': {rest}")
    dump = [] if dump_dir is None else [DumpHook(dump_dir / "prefill")]
    rest.run(other, context, [TimeHook(), *dump, VerifyHook(), LogHook(log), judge])
    measure.rows += judge.rows
    measure.violations += judge.violations
    return other


class _Fork(Hook):
    """Keeps the graph as it is before a pass, and what measures other passes over it."""

    def __init__(self, prefill: Prefill, context: Context, measure: _Measure):
        self._pass = next(p for p in prefill.pipeline.passes if p.name == prefill.first)
        self._context = context
        self._measure = measure
        self.found: tuple[ir.Model, _Measure] | None = None

    def before(self, p: Pass, model: ir.Model) -> None:
        """Keep it: a copy of the nodes, with the same weights.

        Whether the other pass can start on it is found out now, and not after this one's work.

        Raises:
            OptcError: It cannot.
        """
        if p.name != self._pass.name:
            return
        try:
            self._pass.requires(model, self._context)
        except OptcError as error:
            error.where = f"--prefill: {error.where}" if error.where else "--prefill"
            raise
        self.found = model.clone(), self._measure.fork(LABEL)
