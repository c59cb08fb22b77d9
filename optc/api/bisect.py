"""`bisect`: which pass, and which place in the graph, breaks parity?"""

from __future__ import annotations

import functools
from pathlib import Path

import onnx_ir as ir

from optc.api.policies import fitted, policy_for
from optc.api.registries import passes as pass_registry
from optc.api.samples import calibration_of, find_reference
from optc.core.context import Context, Log, Progress, no_progress, silent
from optc.core.pipeline import Pipeline
from optc.ir.load import load_canonical
from optc.ir.reference import Reference
from optc.parity.baseline import Baseline
from optc.parity.bisect import Bisection, Measure
from optc.parity.bisect import bisect as search
from optc.parity.compare import compare
from optc.parity.metrics import Metrics
from optc.targets.evaluate import OrtEvaluator, open_model

__all__ = ["bisect"]


def bisect(
    model: str | Path,
    passes: str,
    *,
    reference: str | Path | None = None,
    calibration: str | Path | None = None,
    policy: str | Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    log: Log = silent,
) -> Bisection:
    """Find the first pass that violates the policy, then the rewrite site in it.

    Arguments are those of `optc.api.build.build`; nothing is written.

    Raises:
        InputError: Something given is wrong.
        UnsupportedError: A pass cannot run on this graph.
    """
    pipeline = Pipeline.parse(passes, pass_registry(), allow_noop=True)
    limits = policy_for(policy, pipeline.passes)
    source = Path(model)
    graph = load_canonical(source)
    limits = fitted(limits, graph)
    truth = find_reference(graph, source, reference, seed=seed, log=log, progress=progress)
    samples = calibration_of(truth, calibration, graph)
    context = Context(OrtEvaluator(), samples, "ort", seed, progress)
    log(f"passes, in the order they run: {pipeline}")

    def measure(candidate: ir.Model) -> Metrics:
        with open_model(candidate) as session:
            return compare(session, truth, progress=progress)

    rebase = functools.partial(_from_graph, truth, progress)
    return search(graph.clone, pipeline, context, measure, limits, rebase=rebase)


def _from_graph(truth: Reference, progress: Progress, before: ir.Model) -> Measure:
    """A measure of the distance from what the graph `before` answers."""
    baseline = Baseline(truth)
    with open_model(before) as session:
        compare(session, truth, tap=baseline, progress=progress)

    def measure(candidate: ir.Model) -> Metrics:
        with open_model(candidate) as session:
            return baseline.compare(session, progress=progress)

    return measure
