"""Passes run in an order that their `after` declarations allow, whatever order was written."""

from __future__ import annotations

import dataclasses
from itertools import permutations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.core.base import Pass, PassResult
from optc.core.context import Context
from optc.core.errors import PassContractError
from optc.core.pipeline import Pipeline, schedule
from optc.core.registry import Registry
from optc.passes import TABLE


def _run(self: Pass, model: ir.Model, ctx: Context) -> PassResult:
    return PassResult()


def make(name: str, *after: str) -> Pass:
    body = {"name": name, "after": after, "run": _run}
    return dataclasses.dataclass(frozen=True)(type(name.title(), (Pass,), body))()


def names(passes: list[Pass]) -> str:
    return "".join(p.name for p in passes)


@st.composite
def acyclic(draw: st.DrawFn) -> list[Pass]:
    letters = "abcdef"[: draw(st.integers(1, 6))]
    passes = []
    for i, letter in enumerate(letters):
        allowed = letters[:i] + "xy"
        after = draw(st.lists(st.sampled_from(allowed), unique=True, max_size=3))
        passes.append(make(letter, *after))
    return draw(st.permutations(passes))


@given(acyclic())
@settings(deadline=None)
def test_every_declaration_is_respected_and_nothing_is_lost(passes: list[Pass]) -> None:
    ordered = schedule(passes)
    assert sorted(names(ordered)) == sorted(names(passes))
    for index, p in enumerate(ordered):
        assert not set(p.after) & set(names(ordered[index:]))


@given(acyclic())
@settings(deadline=None)
def test_an_order_that_is_allowed_is_kept(passes: list[Pass]) -> None:
    ordered = schedule(passes)
    assert schedule(ordered) == ordered


def test_passes_without_declarations_keep_the_order_written() -> None:
    assert names(schedule([make("c"), make("a"), make("b")])) == "cab"


def test_a_pass_moves_back_only_as_far_as_it_must() -> None:
    assert names(schedule([make("b", "a"), make("c"), make("a"), make("d")])) == "cabd"


def test_a_declaration_about_an_absent_pass_means_nothing() -> None:
    assert names(schedule([make("b", "a"), make("c")])) == "bc"


@pytest.mark.parametrize(
    "passes",
    [
        [make("a", "a")],
        [make("a", "b"), make("b", "a")],
        [make("a", "c"), make("b", "a"), make("c", "b")],
    ],
)
def test_a_cycle_is_reported_with_its_members(passes: list[Pass]) -> None:
    members = ", ".join(p.name for p in passes)
    with pytest.raises(PassContractError, match=f"declarations of {members} form a cycle"):
        schedule([make("z"), *passes])


def test_our_own_passes_have_one_order_however_they_are_written() -> None:
    registry: Registry[Pass] = Registry("pass", "passes", Pass, TABLE, points=[])
    written = [",".join(order) for order in permutations(["quant", "flash", "kv"])]
    assert {str(Pipeline.parse(text, registry)) for text in written} == {"flash,kv,quant"}
