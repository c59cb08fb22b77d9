"""`quant`: weights in 8 or 4 bits, activations too where asked, as wide as measurement demands.

1. Sites are products with a constant matrix and lookups in a table (`optc.rewrite.quant_sites`).
2. A scheme says which grids they may have (`optc.rewrite.quant_scheme`).
3. Weights are rounded to the nearest step, or solved for on calibration data
   (`optc.rewrite.quant_rounding`); a table tied to the last product stays one tensor.
4. Activations get one range, fitted to calibration data, their channels evened out first
   (`optc.rewrite.quant_fit`, `optc.rewrite.quant_divide`), or a range for each token
   (`optc.rewrite.quant_tokens`).
5. The drift of the whole graph is measured on calibration samples that nothing was fitted to, and
   what hurts most stays wide until it is within `max-drift` (`optc.rewrite.quant_decide`).

Sources: SmoothQuant, Xiao et al. 2022 (arXiv 2211.10438); GPTQ, Frantar et al. 2022 (arXiv
2210.17323); AWQ, Lin et al. 2023 (arXiv 2306.00978); ONNX QuantizeLinear-24.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.base import Aside, Pass, PassResult, Promise, Refusal, option
from optc.core.context import Context
from optc.core.errors import PassContractError, SampleError, UnsupportedError, UsageError
from optc.ir.interface import LOGITS, ports
from optc.rewrite.calibration import cut_to_cache
from optc.rewrite.encode_once import encoder_in_line
from optc.rewrite.quant_apply import apply_plan
from optc.rewrite.quant_decide import Wishes, decide
from optc.rewrite.quant_drift import output_names
from optc.rewrite.quant_footprint import footprint
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_range import METHODS, PERCENTILE
from optc.rewrite.quant_scheme import SCHEMES, Scheme, limits_in_words
from optc.rewrite.quant_sites import Site, find_sites, is_quantised, weight_groups
from optc.rewrite.quant_weights import is_finite

__all__ = ["Quant"]

_SOLVED = ("int4",)
_MEANT_FOR: dict[str, tuple[tuple[str, ...], str]] = {
    "group": (("int4", "w8"), "has one scale for each output channel, no groups"),
    "symmetric": (("int4",), "never has zero points"),
    "method": (_SOLVED, "rounds weights to the nearest step; methods are for 4-bit weights"),
    "vocabulary": (("int4",), "has 8 bits everywhere"),
    "calibrate": (("int8", "fp8"), "has no ranges to calibrate"),
    "smooth": (("int8", "int8-dynamic", "fp8", "w8"), "rounds no activations"),
}
"""By option, the schemes in which it does something, and what is so in all others."""

_SAYS_NOTHING = {"method": ("rtn",)}
"""Values that are true of every scheme, besides the defaults."""

_OF_INTEGERS = ("entropy", "mse")
"""Ways to choose a range that weigh what even steps lose, which E4M3 does not have."""


@dataclasses.dataclass(frozen=True)
class Quant(Pass):
    """Quantise linear layers and embedding tables, keeping wide what measurement says hurts."""

    name: ClassVar[str] = "quant"
    after: ClassVar[tuple[str, ...]] = ("prune", "flash", "kv", "spec")
    promise: ClassVar[str] = Promise.MEASURED

    scheme: str = option(
        "int8",
        "int8, int8-dynamic (a range for each token), fp8: weights and activations; w8, int4: "
        "weights only",
        choices=tuple(SCHEMES),
    )
    max_drift: float | None = option(
        None,
        "how far the outputs may move on held-out calibration data: KL divergence of next-token "
        f"distributions in nats (auto: {limits_in_words('max_drift')}) or, without logits, "
        f"relative L2 error (auto: {limits_in_words('max_error')})",
        minimum=0.0,
    )
    max_wide: int | None = option(
        None,
        "how many places may stay wide at most, whatever the drift then is, and none wider than "
        "that; products of one activation are one place; auto: as many as it takes",
        minimum=0,
    )
    group: int | None = option(
        None,
        "inputs of an output channel that share a scale (int4, w8); auto: 32, or for w8 what the "
        "target's kernels are exact with",
        choices=(16, 32, 64, 128),
    )
    symmetric: bool = option(False, "no zero points (int4); 8-bit weights never have any")
    method: str = option(
        "auto",
        "how 4-bit weights are rounded: rtn: to the nearest step; awq, gptq, awq-gptq: so that "
        "products stay what they are on calibration data; auto: gptq where there is any, else rtn",
        choices=("auto", "rtn", "awq", "gptq", "awq-gptq"),
    )
    vocabulary: int = option(
        8, "bits of tables, and of products that share one (int4)", choices=(4, 8)
    )
    calibrate: str = option(
        "auto",
        "how far one range for all data reaches (int8, fp8): minmax, percentile "
        f"({PERCENTILE:g}), entropy "
        "or mse (these two int8); auto: with the margin that serves samples best which it was not "
        "taken from",
        choices=("auto", *METHODS),
    )
    smooth: str = option(
        "auto",
        "auto: even out the channels of activations by scaling weights, where that helps; off: do "
        "not",
        choices=("auto", "off"),
    )

    def requires(self, model: ir.Model, ctx: Context) -> None:
        """Ranges and solved weights need a runtime and calibration data."""
        self._check_options()
        needs = {"int8": "int8 activations", "fp8": "E4M3 activations"}.get(self.scheme)
        if self.method not in {"auto", "rtn"}:
            needs = f"the method {self.method}"
        if needs is None:
            return
        instead = "quant:method=rtn" if self.scheme == "int4" else "quant:scheme=w8"
        verb = "needs" if needs.startswith("the") else "need"
        if ctx.evaluate is None:
            raise UnsupportedError(
                f"{needs} {verb} a runtime to calibrate with",
                where=f"pass '{self.name}'",
                remedy=f"use {instead}",
            )
        if not ctx.calibration:
            raise SampleError(
                f"{needs} {verb} calibration data and there is none",
                where=f"pass '{self.name}'",
                remedy=f"give --calibration, or use {instead}",
            )

    def _check_options(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            schemes, why = _MEANT_FOR.get(field.name, (tuple(SCHEMES), ""))
            harmless = (field.default, *_SAYS_NOTHING.get(field.name, ()))
            if value not in harmless and self.scheme not in schemes:
                raise UsageError(
                    f"the scheme {self.scheme} {why}",
                    where=f"quant:{field.name}",
                    remedy=f"leave it out, or use scheme={' or '.join(schemes)}",
                )
        if self.scheme == "fp8" and self.calibrate in _OF_INTEGERS:
            raise UsageError(
                f"{self.calibrate} is for steps of one size, and those of fp8 are not",
                where="quant:calibrate",
                remedy="use calibrate=auto, minmax or percentile",
            )

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Find the sites, plan their widths, write the plan."""
        with encoder_in_line(model):
            return self._quantise(model, ctx)

    def _quantise(self, model: ir.Model, ctx: Context) -> PassResult:
        common.LiftConstantsToInitializersPass()(model)
        samples, cut = cut_to_cache(ctx.calibration, ports(model.graph.inputs))
        ctx = dataclasses.replace(ctx, calibration=samples)
        found = find_sites(model, ctx.wants)
        unfit = _not_finite(found.sites)
        refusals = [*found.refusals, *unfit]
        refused = {refusal.site for refusal in unfit}
        sites = [site for site in found.sites if site.name not in refused]
        if not sites:
            return PassResult(refusals=tuple(refusals))
        wishes = self._wishes(model, ctx)
        choice = decide(model, sites, wishes, ctx)
        kept = [s for s in sites if choice.plan.width(s) == "float"]
        refusals += [Refusal(site.name, _why_float(wishes)) for site in kept]
        done = tuple(site.name for site in sites if site not in kept)
        options = {"scheme": self.scheme, "method": wishes.method, "max_drift": wishes.max_drift}
        details = {**options, **choice.details(sites)}
        notes = (*cut, *choice.notes(sites)) if done else ()
        apply_plan(model, sites, choice.plan)
        return PassResult(done, tuple(refusals), notes, details)

    def _wishes(self, model: ir.Model, ctx: Context) -> Wishes:
        scheme = self._scheme(ctx.target)
        limit = self.max_drift
        if limit is None:
            has_logits = output_names(model) == [LOGITS]
            limit = scheme.max_drift if has_logits else scheme.max_error
        method = self.method
        if method == "auto":
            has_data = ctx.evaluate is not None and bool(ctx.calibration)
            method = "gptq" if has_data and self.scheme in _SOLVED else "rtn"
        smooth = self.smooth == "auto"
        return Wishes(scheme, method, smooth, self.calibrate, limit, self.max_wide)

    def _scheme(self, target: str) -> Scheme:
        asked = Grid(4, self.group or 0, self.symmetric or self.scheme == "w8")
        return SCHEMES[self.scheme](target, asked, self.vocabulary)

    def footprint(self, model: ir.Model, weights: int) -> int:
        """Every site narrow, as it is where nothing is measured."""
        found = footprint(model, self._scheme("ort"))
        return weights - found.before + found.after

    def aside(self, model: ir.Model) -> Aside:
        """Trials hold weights at two widths at once; steps that were solved wait on disk."""
        found = footprint(model, self._scheme("ort"))
        is_solved = self.scheme in _SOLVED and self.method != "rtn"
        return Aside(found.after, found.steps if is_solved else 0)

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        """Every reported site reads a quantised matrix now."""
        nodes = {out.name: node for node in model.graph.all_nodes() for out in node.outputs}
        for name in result.sites:
            if not any(v is not None and is_quantised(v) for v in nodes[name].inputs):
                raise PassContractError(f"'{name}' is reported and not quantised", where=self.name)


def _why_float(wishes: Wishes) -> str:
    """Why a site ends in float: it drifts at the widest grid that there is, not the narrow one."""
    drifts = f"{wishes.scheme.widest} drifts more than {wishes.max_drift:g}"
    remedy = "raise quant:max-drift to quantise it"
    return f"{drifts}; its weight is among those that hurt most; {remedy}"


def _not_finite(sites: Sequence[Site]) -> list[Refusal]:
    """Sites whose constant holds NaN or infinity."""
    refusals: list[Refusal] = []
    for group in weight_groups(sites):
        tensor = group[0].weight.const_value
        if tensor is None or not is_finite(tensor):
            refusals += [Refusal(s.name, "its weight holds NaN or infinity") for s in group]
    return refusals
