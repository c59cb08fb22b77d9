"""Passes for the tests of the core: they note that they ran, and do what a test asks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from optc.core.base import Pass, PassResult, Refusal, option
from optc.core.context import Context
from optc.core.errors import PassContractError, UnsupportedError


def empty_model() -> ir.Model:
    return ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        toy (float[N] x) => (float[N] y) { y = Identity(x) }"""
    )


def leave_mark(model: ir.Model, name: str) -> PassResult:
    marks = model.metadata_props.get("marks", "")
    model.metadata_props["marks"] = f"{marks} {name}".strip()
    return PassResult(sites=("y",))


@dataclasses.dataclass(frozen=True)
class Tune(Pass):
    """One option of every type."""

    name: ClassVar[str] = "tune"

    level: int = option(3, "A bounded whole number.", minimum=1, maximum=9)
    ratio: float = option(0.5, "A bounded number.", minimum=0.0, maximum=1.0)
    keep_last: bool = option(False, "A switch.")
    scheme: str = option("int8", "One of a few words.", choices=("int8", "int4", "fp8"))
    group: int = option(128, "One of a few numbers.", choices=(32, 64, 128))
    limit: int | None = option(None, "A whole number, or none.", minimum=0)

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        return leave_mark(model, self.name)


@dataclasses.dataclass(frozen=True)
class Plain(Pass):
    """No options."""

    name: ClassVar[str] = "plain"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        return leave_mark(model, self.name)


@dataclasses.dataclass(frozen=True)
class Late(Pass):
    """Wants to run after `plain`."""

    name: ClassVar[str] = "late"
    after: ClassVar[tuple[str, ...]] = ("plain",)

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        return leave_mark(model, self.name)


@dataclasses.dataclass(frozen=True)
class Idle(Pass):
    """Finds `sites` places and refuses them all."""

    name: ClassVar[str] = "idle"

    sites: int = option(0, "How many places to refuse.")
    note: str = option("", "A note to leave.")

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        refusals = tuple(Refusal(f"site{i}", f"too narrow by {i}") for i in range(self.sites))
        return PassResult(refusals=refusals, notes=(self.note,) if self.note else ())


@dataclasses.dataclass(frozen=True)
class Broken(Pass):
    """Fails in the part that `where` names."""

    name: ClassVar[str] = "broken"

    where: str = option("run", "Which part fails.", choices=("requires", "run", "ensures", "told"))

    def requires(self, model: ir.Model, ctx: Context) -> None:
        if self.where == "requires":
            raise UnsupportedError("the graph has no weights")

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if self.where == "run":
            raise KeyError("hidden_size")
        return leave_mark(model, self.name)

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        if self.where == "ensures":
            raise ZeroDivisionError("no sites to average over")
        if self.where == "told":
            raise PassContractError("a node was left without a name")


class NotAPass:
    """Something a table must not point at."""


TABLE = {
    "tune": "toy_passes:Tune",
    "plain": "toy_passes:Plain",
    "late": "toy_passes:Late",
    "idle": "toy_passes:Idle",
    "broken": "toy_passes:Broken",
}
