"""Passes that touch weights of the tiny language model, honestly or not."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from optc.core.base import Pass, PassResult, Promise, Refusal, option
from optc.core.context import Context
from optc.core.errors import NoRewriteError


def scale(model: ir.Model, name: str, factor: float) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = (value.const_value.numpy() * factor).astype(np.float32)
    value.const_value = ir.tensor(array, name=name)


@dataclasses.dataclass(frozen=True)
class Scale(Pass):
    """Promises exactness; keeps it only for a factor of 1."""

    name: ClassVar[str] = "scale"
    factor: float = option(1.0, "Factor on the weights of the head.")

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        scale(model, "head", self.factor)
        return PassResult(
            sites=("head",),
            refusals=(Refusal("table", "it is shared"),),
            notes=("one weight scaled",),
            details={"factor": self.factor},
        )


@dataclasses.dataclass(frozen=True)
class Shake(Scale):
    """The same, and says that it is measured."""

    name: ClassVar[str] = "shake"
    promise: ClassVar[str] = Promise.MEASURED


@dataclasses.dataclass(frozen=True)
class Cut(Pass):
    """Leaves a graph that no runtime takes."""

    name: ClassVar[str] = "cut"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        scale(model, "head", 1.0)
        value = model.graph.initializers["wq"]
        value.const_value = ir.tensor(np.zeros((3, 3), np.float32), name="wq")
        return PassResult(sites=("wq",))


@dataclasses.dataclass(frozen=True)
class EachWeight(Pass):
    """Rewrites one weight per site; `bad` ones by a factor, the others not at all."""

    name: ClassVar[str] = "each-weight"
    bad: tuple[str, ...] = ()
    factor: float = 1.5
    together: int = 1  # how many bad ones it takes before any is spoilt
    needs_all: bool = False
    names_sites: bool = True

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        names = ("table", "positions", "wq", "wk", "wv", "head")
        sites = tuple(name for name in names if ctx.wants(name))
        if not sites:
            raise NoRewriteError("no weight may be touched")
        if self.needs_all and len(sites) < len(names):
            raise NoRewriteError("all weights or none")
        spoilt = [site for site in sites if site in self.bad]
        for site in spoilt if len(spoilt) >= self.together else []:
            scale(model, site, self.factor)
        return PassResult(sites=sites if self.names_sites else ())
