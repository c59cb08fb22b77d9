"""`build`: from a model file to a verified bundle. Read this first."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from optc.api.evidence import Wanted
from optc.api.forecast import check_forecast, make_forecast
from optc.api.log import stage
from optc.api.outputs import bundle_path, check_folder, folder_bytes
from optc.api.pack import Packer
from optc.api.policies import fitted, policy_for
from optc.api.prefill import calls_of, check_alike, read_prefill
from optc.api.registries import passes as pass_registry
from optc.api.registries import targets as target_registry
from optc.api.result import BuildResult
from optc.api.room import check_not_built, tell_room
from optc.api.run_passes import run_passes
from optc.bundle.sign import check_private_key, sign_bundle
from optc.bundle.write import check_writable, write_bundle
from optc.core.context import Context, Log, Progress, no_progress, silent
from optc.core.errors import NotYetError, UnsupportedError, UsageError
from optc.core.pipeline import Pipeline
from optc.ir.load import load_canonical
from optc.targets.base import Target
from optc.targets.evaluate import OrtEvaluator

__all__ = ["build"]


def build(
    model: str | Path,
    passes: str,
    *,
    prefill: str | None = None,
    prefill_from: int | None = None,
    target: str = "ort",
    out: str | Path | None = None,
    reference: str | Path | None = None,
    calibration: str | Path | None = None,
    policy: str | Path | None = None,
    evidence: str = "full",
    dump_dir: str | Path | None = None,
    draft: str | Path | None = None,
    sm: Sequence[int] | None = None,
    allow_noop: bool = False,
    force: bool = False,
    sign_key: str | Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    log: Log = silent,
) -> BuildResult:
    """Optimise a model, measure it after every pass, and write a bundle.

    Args:
        model: An ONNX file from any exporter.
        passes: Pipeline text such as `quant,flash,kv:max=4096`, in any order.
        prefill: Passes such as `quant:scheme=int8-dynamic` that replace those of the same name for
            a second engine of the bundle, which runs calls with many new tokens; needs `kv`.
        prefill_from: New tokens of the longest row of a call from which on they are many; by
            default 9.
        target: Runtime to build for.
        out: The bundle's folder; see `optc.api.outputs.bundle_path` for the default.
        reference: Inputs and the original's answers; `reference.npz` beside the model by default,
            and the input graph's own answers where there is none.
        calibration: File with inputs to calibrate with: an array for each, whose first axis counts
            samples, or a reference; the reference's own by default.
        policy: TOML file with limits; limits that follow from the passes by default.
        evidence: `full`; or `none`, to compare nothing: for a model that this machine cannot run.
            What the reference says then goes into the bundle and is judged by `verify` elsewhere,
            and passes calibrate on `calibration`, for which alone a graph is run, or not at all.
        dump_dir: Folder that gets the graph before the first and after every pass.
        draft: Draft model for speculation; not there yet.
        sm: Compute capabilities, for targets that take them.
        allow_noop: Whether a pass may find nothing to rewrite.
        force: Write the bundle although it misses its policy, and say so in it; start although
            the forecast says that memory or disk is short.
        sign_key: Private key (PEM, elliptic curve) to sign the bundle with.
        seed: Seed of everything random.
        progress: Told how far long steps are.
        log: Given one line at a time, for people to read.

    Returns:
        What was done, measured and written.

    Raises:
        InputError: Something given is wrong; nothing was written.
        ParityError: A pass or the engine misses the policy; nothing was written.
        UnsupportedError: The graph, the target or this machine cannot; nothing was written.
    """
    started = time.perf_counter()
    _check_planned(draft)
    source, bundle = Path(model), bundle_path(Path(model), out)
    wanted = Wanted(evidence, reference, calibration)
    pipeline = Pipeline.parse(passes, pass_registry(), allow_noop=allow_noop)
    goal = _target(target, sm)
    second = read_prefill(prefill, prefill_from, pipeline, goal)
    chains = [pipeline.passes, *([second.pipeline.passes] if second else [])]
    limits = policy_for(policy, itertools.chain(*chains))
    _check_outputs(bundle, dump_dir, sign_key)

    with stage(progress, "reading the model"):
        graph = load_canonical(source)
    check_not_built(graph, source)
    limits = fitted(limits, graph)
    dumps = Path(dump_dir) if dump_dir is not None else None
    needs = make_forecast(graph, chains, bundle, dumps, way_out=wanted.way_out)
    check_forecast(needs, force=force, log=log)
    data = wanted.find(graph, source, seed=seed, log=log, progress=progress)
    context = Context(OrtEvaluator(), data.calibration, goal.name, seed, progress)
    measure = wanted.hook(data.reference, limits, force=force, progress=progress)
    other = run_passes(graph, pipeline, second, context, measure, dump_dir=dumps, log=log)

    lowered = _lower(goal, graph, other, progress)
    tell_room(lowered[0], source.parent, log)
    speed = wanted.speed(goal, calls_of(graph, other, second), log=log, progress=progress)
    packer = Packer(
        model=source,
        target=goal,
        pipeline=pipeline,
        given=passes,
        prefill=second,
        reference=data.reference,
        policy=limits,
        force=force,
        progress=progress,
        rows=measure.rows,
        violations=measure.violations,
        is_measured=wanted.is_measured,
    )
    write_bundle(bundle, lambda folder: packer.fill(lowered, folder))
    if sign_key is not None:
        sign_bundle(bundle, sign_key)
    return BuildResult(
        model=source,
        bundle=bundle,
        bytes=folder_bytes(bundle),
        target=goal.name,
        pipeline=passes,
        order=tuple(packer.order),
        prefill=second.as_json() if second else None,
        source=packer.source,
        level=packer.level,
        rows=tuple(packer.rows),
        policy=limits,
        violations=tuple(packer.violations),
        signed=sign_key is not None,
        seconds=time.perf_counter() - started,
        speed=speed,
    )


def _check_planned(draft: str | Path | None) -> None:
    if draft is not None:
        raise NotYetError("speculation with a draft model is not there yet", where="--draft")


def _target(name: str, sm: Sequence[int] | None) -> Target:
    cls = target_registry().load(name)
    options = {} if sm is None else {"sm": tuple(sm)}
    if options and "sm" not in getattr(cls, "__dataclass_fields__", {}):
        problem = f"the target '{name}' does not build for GPU architectures"
        raise UsageError(problem, where="--sm", remedy="leave it out")
    return cls(**options)


def _check_outputs(bundle: Path, dump_dir: str | Path | None, sign_key: str | Path | None) -> None:
    """Find out now, and not after minutes of work, whether the results can be written."""
    check_writable(bundle)
    if dump_dir is not None:
        check_folder(dump_dir)
    if sign_key is not None:
        check_private_key(sign_key)


def _lower(
    target: Target, graph: ir.Model, other: ir.Model | None, progress: Progress
) -> list[ir.Model]:
    """What engines are made of: of one graph, or of two that can share caches."""
    lowered = [_lowered(target, graph, progress)]
    if other is not None:
        lowered.append(_lowered(target, other, progress))
        check_alike(*lowered)
    return lowered


def _lowered(target: Target, graph: ir.Model, progress: Progress) -> ir.Model:
    reasons = target.refuses(graph)
    if reasons:
        raise UnsupportedError("; ".join(reasons[:3]), where=f"target '{target.name}'")
    with stage(progress, "lowering"):
        return target.lower(graph)
