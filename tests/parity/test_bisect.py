"""Bisection names the pass, then the rewrite site, and is honest where there is no single one."""

from __future__ import annotations

import dataclasses
import json

import onnx_ir as ir
import pytest
from tiny_lm import OrtModel, plain_lm
from weight_passes import EachWeight, Scale, Shake

from optc.core.context import Context
from optc.core.errors import PassContractError, SampleError
from optc.core.pipeline import Pipeline
from optc.ir.reference import Reference
from optc.parity.baseline import Baseline
from optc.parity.bisect import Bisection, Measure, bisect
from optc.parity.compare import compare
from optc.parity.metrics import Metrics
from optc.parity.policy import Policy


@dataclasses.dataclass
class Case:
    """A search on the tiny model."""

    reference: Reference

    def measure(self, model: ir.Model) -> Metrics:
        return compare(OrtModel(model), self.reference)

    def rebase(self, model: ir.Model) -> Measure:
        baseline = Baseline(self.reference)
        compare(OrtModel(model), self.reference, tap=baseline)
        return lambda other: baseline.compare(OrtModel(other))

    def search(self, *passes, ctx: Context | None = None, rebase: bool = True) -> Bisection:
        policy = Policy.default([p.promise for p in passes])
        return bisect(
            plain_lm,
            Pipeline(passes),
            ctx or Context(),
            self.measure,
            policy,
            rebase=self.rebase if rebase else None,
        )


@pytest.fixture
def case(reference: Reference) -> Case:
    few = dataclasses.replace(
        reference,
        samples=reference.samples[:1],
        prompts=reference.prompts[:1],
        continuations=reference.continuations[:1],
    )
    return Case(few)


def test_a_good_pipeline_has_nothing_to_find(case: Case) -> None:
    found = case.search(Scale(), EachWeight())
    assert found.name is None
    assert found.note == "no pass of 'scale,each-weight' violates the policy"
    assert found.probes == 3


@pytest.mark.parametrize("bad", ["table", "positions", "wq", "wk", "wv", "head"])
def test_the_one_bad_site_is_found_wherever_it_is(case: Case, bad: str) -> None:
    found = case.search(Scale(), EachWeight(bad=(bad,)))
    assert (found.name, found.site, found.alone) == ("each-weight", bad, True)
    assert found.prefix[-1] == bad
    assert found.note == f"the site '{bad}' breaks parity by itself"
    assert found.violations


def test_of_several_bad_sites_the_first_is_named(case: Case) -> None:
    found = case.search(EachWeight(bad=("positions", "wv", "head")))
    assert (found.site, found.alone, found.prefix) == ("positions", True, ("table", "positions"))


def test_the_search_is_logarithmic(case: Case) -> None:
    found = case.search(EachWeight(bad=("wv",)))
    assert found.probes <= 2 + 3 + 2  # input and pass, halving six sites, empty and alone


def test_sites_that_only_break_together_are_reported_as_such(case: Case) -> None:
    found = case.search(EachWeight(bad=("positions", "wv"), together=2))
    assert (found.site, found.alone) == ("wv", False)
    assert found.prefix == ("table", "positions", "wq", "wk", "wv")
    assert "breaks parity only together with sites before it" in found.note


def test_a_pass_that_cannot_run_on_part_of_its_sites_says_so(case: Case) -> None:
    @dataclasses.dataclass(frozen=True)
    class AllOrNothing(EachWeight):
        def run(self, model, ctx):
            if not ctx.wants("head") or not ctx.wants("table"):
                raise PassContractError("it takes all weights or none")
            return super().run(model, ctx)

    found = case.search(AllOrNothing(bad=("wv",)))
    assert (found.name, found.site, found.alone) == ("each-weight", None, None)
    assert "cannot be run on part of its sites: it takes all" in found.note


def test_a_pass_that_names_no_site_says_so(case: Case) -> None:
    found = case.search(EachWeight(bad=("wv",), names_sites=False))
    assert found.site is None
    assert found.note == "the pass breaks parity although it names no rewrite site"


def test_a_pass_that_breaks_parity_outside_its_sites_says_so(case: Case) -> None:
    @dataclasses.dataclass(frozen=True)
    class Sloppy(EachWeight):
        def run(self, model, ctx):
            Scale(factor=1.5).run(model, ctx)
            return dataclasses.replace(super().run(model, Context()), sites=("wq",))

    found = case.search(Sloppy())
    assert found.site is None
    assert found.note == "the pass breaks parity even when no site may be rewritten"


def test_the_callers_own_wants_still_holds(case: Case) -> None:
    ctx = Context(wants=lambda site: site != "wv")
    assert case.search(EachWeight(bad=("wv",)), ctx=ctx).name is None
    found = case.search(EachWeight(bad=("wv", "head")), ctx=ctx)
    assert found.site == "head"


def test_an_exact_pass_after_a_measured_one_is_held_against_the_graph_before_it(
    case: Case,
) -> None:
    found = case.search(Shake(factor=1.01), EachWeight(bad=("head",), factor=1.01))
    assert (found.name, found.site) == ("each-weight", "head")
    lenient = case.search(Shake(factor=1.01), EachWeight(bad=("head",), factor=1.01), rebase=False)
    assert lenient.name is None


def test_an_input_graph_that_is_already_wrong_is_the_finding(case: Case) -> None:
    found = bisect(
        lambda: plain_lm(seed=5), Pipeline((Scale(),)), Context(), case.measure, Policy()
    )
    assert (found.name, found.site) == ("input", None)
    assert "the input graph itself" in found.note


def test_samples_that_do_not_fit_are_no_finding(case: Case) -> None:
    def misfit(model: ir.Model) -> Metrics:
        raise SampleError("the samples are of another model")

    with pytest.raises(SampleError):
        bisect(plain_lm, Pipeline((Scale(),)), Context(), misfit, Policy())


def test_a_finding_is_json(case: Case) -> None:
    found = case.search(EachWeight(bad=("wv",)))
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["site"] == "wv"
    assert document["prefix"] == ["table", "positions", "wq", "wk", "wv"]
