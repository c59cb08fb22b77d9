"""A second engine of a bundle, for calls with many new tokens: its passes, and which calls it runs.

Reading a prompt is bound by arithmetic, writing a token by reading weights, so other passes may be
best for each.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from optc.api.registries import passes as pass_registry
from optc.core.base import Pass
from optc.core.errors import UnsupportedError, UsageError
from optc.core.grammar import parse_passes
from optc.core.pipeline import Pipeline
from optc.ir.interface import cache_ports, ports
from optc.targets.base import Target

__all__ = ["Prefill", "calls_of", "check_alike", "read_prefill"]

_FROM = 9
"""New tokens from which on the second engine runs a call, unless told otherwise: measured for 4, 9
and 16 tokens, see docs/decisions/0021-prefill-and-decode-engines.md."""

_MOST = (1 << 31) - 1
"""The largest number of new tokens that may be asked for: more than a call can have."""

_OPTION = "--prefill"


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The second engine, as it was asked for.

    Attributes:
        given: The passes that replace others, as the user wrote them.
        pipeline: All its passes, in the order they run.
        first: Name of the first pass that is another one than the first engine's.
        start: New tokens of the longest row of a call from which on this engine runs it.
    """

    given: str
    pipeline: Pipeline
    first: str
    start: int

    @property
    def order(self) -> list[str]:
        """Canonical text of each pass, in the order they run."""
        return self.pipeline.texts

    def as_json(self) -> dict[str, Any]:
        """What documents say of it."""
        return {"pipeline": self.given, "order": self.order, "from": self.start}

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it beside what it says of engines."""
        options = {p.name: dataclasses.asdict(p) for p in self.pipeline.passes}
        return {"pipeline": self.given, "order": self.order, "options": options}


def read_prefill(
    given: str | None, start: int | None, pipeline: Pipeline, target: Target
) -> Prefill | None:
    """Turn what the user said of a second engine into its pipeline; None if nothing was said.

    Args:
        given: Passes that replace those of the same name.
        start: New tokens from which on it runs a call; by default more than 8, whatever the
            machine, as bundles are the same wherever they are built.
        pipeline: The first engine's passes.
        target: Runtime to build for.

    Raises:
        UsageError: Not a part of a pipeline, a pass that the pipeline has not, no cache.
        UnsupportedError: The target has one engine for all calls.
    """
    if given is None:
        if start is not None:
            problem, remedy = "there is no engine for prefill", f"give its passes with {_OPTION}"
            raise UsageError(problem, where=f"{_OPTION}-from", remedy=remedy)
        return None
    _check_start(start)
    others = {p.name: p for p in parse_passes(given, pass_registry(), where=_OPTION)}
    _check_names(others, pipeline)
    if not target.has_prefill:
        problem = f"the target '{target.name}' has one engine for all calls"
        raise UnsupportedError(problem, where=_OPTION, remedy="leave it out")
    passes = tuple(others.get(p.name, p) for p in pipeline.passes)
    pairs = list(zip(pipeline.passes, passes, strict=True))
    _check_shared(pairs)
    first = next((other.name for one, other in pairs if one != other), None)
    if first is None:
        problem = f"'{given}' is what the pipeline says already"
        raise UsageError(problem, where=_OPTION, remedy="leave it out, or give other options")
    return Prefill(given, Pipeline(passes, pipeline.allow_noop), first, start or _FROM)


def _check_start(start: int | None) -> None:
    if start is None or 2 <= start <= _MOST:
        return
    if start < 2:
        problem = f"from {start} new tokens on, nothing is left to the engine that decodes"
        remedy = "the smallest number is 2"
    else:
        problem = "no call has so many new tokens, so nothing is left to the engine for prefill"
        remedy = f"the largest number is {_MOST}"
    raise UsageError(problem, where=f"{_OPTION}-from", remedy=remedy)


def _check_shared(pairs: Iterable[tuple[Pass, Pass]]) -> None:
    """See that options which change what a graph takes and gives are the first engine's."""
    for one, other in pairs:
        shared = (f.name for f in dataclasses.fields(one) if f.metadata.get("shared"))
        for name in shared:
            if getattr(one, name) == getattr(other, name):
                continue
            problem = (
                f"'{one.name}:{name}' is another than in --passes, and caches would not be alike"
            )
            raise UsageError(problem, where=_OPTION, remedy="give both the same")


def _check_names(others: dict[str, Pass], pipeline: Pipeline) -> None:
    names = [p.name for p in pipeline.passes]
    for name in others:
        if name not in names:
            problem = f"the pass '{name}' is not in the pipeline, so there is nothing to replace"
            remedy = f"name {' or '.join(names)}, or add it to --passes"
            raise UsageError(problem, where=_OPTION, remedy=remedy)
    if "kv" not in names:
        problem = "without a cache there is one kind of call, and nothing to prefill"
        raise UsageError(problem, where=_OPTION, remedy="add kv to --passes")


def calls_of(
    graph: ir.Model, other: ir.Model | None, prefill: Prefill | None
) -> list[tuple[ir.Model, range]]:
    """What each engine is made of, with the numbers of new tokens of the calls that it runs."""
    if other is None or prefill is None:
        return [(graph, range(1, sys.maxsize))]
    return [(graph, range(1, prefill.start)), (other, range(prefill.start, sys.maxsize))]


def check_alike(one: ir.Model, other: ir.Model) -> None:
    """See that two lowered graphs take and give the same arrays.

    Raises:
        UsageError: They do not, so they cannot share caches.
        UnsupportedError: They are of an encoder-decoder.
    """
    inputs = ports(one.graph.inputs)
    if any(cache.is_cross for cache in cache_ports(inputs)):
        problem = "an encoder-decoder begins with a token or a few, which would never be prefilled"
        raise UnsupportedError(problem, where=_OPTION, remedy="leave it out")
    pairs = [
        ("takes", inputs, ports(other.graph.inputs)),
        ("gives", ports(one.graph.outputs), ports(other.graph.outputs)),
    ]
    for verb, mine, theirs in pairs:
        known = [port.kind for port in mine]
        if known != [port.kind for port in theirs]:
            strange = next((p for p in theirs if p.kind not in known), mine[-1])
            problem = f"with these passes the engine {verb} other arrays, first '{strange.name}'"
            remedy = "replace passes that leave inputs, outputs and caches as they are"
            raise UsageError(problem, where=_OPTION, remedy=remedy)
