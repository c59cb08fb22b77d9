"""Find the pass that breaks parity, then the rewrite site in it.

The passes are run one after the other and judged as `optc.parity.hook` judges them. The first one
that violates the policy is run again on the graph before it, with ever fewer of its sites allowed,
until the shortest run of sites, in graph order, that breaks parity is known. Its last site is then
tried alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from optc.core.base import Pass, Promise
from optc.core.context import Context
from optc.core.errors import InputError, NoRewriteError, OptcError
from optc.core.grammar import print_pass
from optc.core.pipeline import Pipeline
from optc.parity.metrics import Metrics
from optc.parity.policy import Policy
from optc.parity.rows import INPUT

__all__ = ["Bisection", "Measure", "bisect"]

Measure = Callable[[ir.Model], Metrics]


@dataclasses.dataclass(frozen=True)
class Bisection:
    """What the search found.

    Attributes:
        name: The first pass that violates the policy; `input` when the input graph already does;
            None when nothing does.
        text: Canonical text of that pass.
        violations: The rules broken, each a sentence.
        site: The site that breaks parity; None where the search could not come down to one.
        alone: Whether `site` breaks parity without any other site; None where that is not known.
        prefix: The shortest run of first sites that breaks parity, `site` last.
        note: The finding in one sentence.
        probes: How many graphs were measured.
    """

    name: str | None
    text: str = ""
    violations: tuple[str, ...] = ()
    site: str | None = None
    alone: bool | None = None
    prefix: tuple[str, ...] = ()
    note: str = ""
    probes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        listed = {"violations": list(self.violations), "prefix": list(self.prefix)}
        return dataclasses.asdict(self) | listed


def bisect(
    load: Callable[[], ir.Model],
    pipeline: Pipeline,
    ctx: Context,
    measure: Measure,
    policy: Policy,
    *,
    rebase: Callable[[ir.Model], Measure] | None = None,
) -> Bisection:
    """Search for what breaks parity.

    Args:
        load: Gives the canonical input graph, fresh each time.
        pipeline: Passes in effective order.
        ctx: Surroundings for the passes; its `wants` is narrowed further.
        measure: Distance of a graph from the reference.
        policy: What is acceptable.
        rebase: Gives, for a graph, a measure of the distance from that graph. With it an exact pass
            after a measured one is held against the graph before it by the exact limits; without
            it, against the reference by the measured ones.

    Raises:
        InputError: The samples do not fit a graph.
        OptcError: A pass cannot be run whole.
    """
    return _Search(ctx, measure, policy, rebase).run(load(), pipeline)


class _Search:
    def __init__(
        self,
        ctx: Context,
        measure: Measure,
        policy: Policy,
        rebase: Callable[[ir.Model], Measure] | None,
    ):
        self.ctx = ctx
        self.measure = measure
        self.policy = policy
        self.rebase = rebase
        self.probes = 0

    def run(self, model: ir.Model, pipeline: Pipeline) -> Bisection:
        metrics = self.measure(model)
        self.probes += 1
        violations = tuple(self.policy.violations(metrics))
        if violations:
            note = "the input graph itself is not what the reference was made with"
            return Bisection(INPUT, INPUT, violations, note=note, probes=self.probes)
        exact = not self.policy.violations(metrics, Promise.EXACT)
        for p in pipeline.passes:
            exact = exact and p.promised == Promise.EXACT
            before = model.clone()
            judge = self._judge(p, before, exact)
            sites = self._apply(p, model, self.ctx)
            violations = judge(model)
            if violations:
                return self._narrow(p, before, sites, violations, judge)
        note = f"no pass of '{pipeline}' violates the policy"
        return Bisection(None, note=note, probes=self.probes)

    def _judge(
        self, p: Pass, before: ir.Model, exact: bool
    ) -> Callable[[ir.Model], tuple[str, ...]]:
        """How a graph that `p` made of `before` is judged: the rules it breaks."""
        measure, promise = self.measure, p.promised
        if p.promised == Promise.EXACT and not exact:
            if self.rebase is not None:
                measure = self.rebase(before)
            else:
                promise = Promise.MEASURED

        def judge(model: ir.Model) -> tuple[str, ...]:
            self.probes += 1
            try:
                return tuple(self.policy.violations(measure(model), promise))
            except InputError:
                raise
            except OptcError as error:
                return (f"the graph does not run: {error}",)

        return judge

    def _apply(self, p: Pass, model: ir.Model, ctx: Context) -> tuple[str, ...]:
        (step,) = Pipeline((p,), allow_noop=True).run(model, ctx)
        return step.result.places

    def _narrow(
        self,
        p: Pass,
        before: ir.Model,
        sites: Sequence[str],
        violations: tuple[str, ...],
        judge: Callable[[ir.Model], tuple[str, ...]],
    ) -> Bisection:
        def breaks(allowed: Sequence[str]) -> bool:
            model = before.clone()
            try:
                self._apply(p, model, self._allowing(allowed))
            except NoRewriteError:
                return False  # the graph before, which is good
            return bool(judge(model))

        found = Bisection(p.name, print_pass(p), violations)
        try:
            found = _shortest_prefix(found, sites, breaks)
        except OptcError as error:
            note = f"the pass cannot be run on part of its sites: {error}"
            found = dataclasses.replace(found, note=note)
        return dataclasses.replace(found, probes=self.probes)

    def _allowing(self, sites: Sequence[str]) -> Context:
        allowed, wants = frozenset(sites), self.ctx.wants
        return dataclasses.replace(self.ctx, wants=lambda site: site in allowed and wants(site))


def _shortest_prefix(
    found: Bisection, sites: Sequence[str], breaks: Callable[[Sequence[str]], bool]
) -> Bisection:
    """Binary search between no site, which is good, and all sites, which are bad."""
    if not sites:
        note = "the pass breaks parity although it names no rewrite site"
        return dataclasses.replace(found, note=note)
    if breaks(()):
        note = "the pass breaks parity even when no site may be rewritten"
        return dataclasses.replace(found, note=note)
    good, bad = 0, len(sites)
    while bad - good > 1:
        middle = (good + bad) // 2
        if breaks(sites[:middle]):
            bad = middle
        else:
            good = middle
    site, prefix = sites[bad - 1], tuple(sites[:bad])
    alone = bad == 1 or breaks((site,))
    note = f"the site '{site}' breaks parity by itself"
    if not alone:
        note = (
            f"no single site was found: '{site}' breaks parity only together with sites before it "
            f"(the first {bad} of {len(sites)} sites do, the first {bad - 1} do not)"
        )
    return dataclasses.replace(found, site=site, alone=alone, prefix=prefix, note=note)
