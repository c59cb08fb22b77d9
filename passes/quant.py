"""`quant`: weights and activations in 8 bits, as wide as measurement says they must be.

1. Sites are products with a constant matrix and lookups in a table (`optc.rewrite.quant_sites`).
2. Weights become int8, symmetric, one scale per output channel; a table tied to the last product
   stays one tensor (`optc.rewrite.quant_weights`).
3. Activations become int8, per tensor, on a grid fitted to calibration data; channels are evened
   out first (`optc.rewrite.quant_fit`, `optc.rewrite.quant_divide`).
4. The drift of the whole graph is measured on calibration samples that the grids were not fitted
   to, and what hurts most stays wide until it is within `max-drift`: activations in float first,
   weights if need be (`optc.rewrite.quant_search`).

Sources: SmoothQuant, Xiao et al. 2022 (arXiv 2211.10438); ONNX QuantizeLinear-24.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.base import Pass, PassResult, Promise, Refusal, option
from optc.core.context import Context, Feeds
from optc.core.errors import PassContractError, SampleError, UnsupportedError
from optc.ir.interface import ports
from optc.rewrite.calibration import cut_to_cache
from optc.rewrite.encode_once import encoder_in_line
from optc.rewrite.last_tokens import every_token
from optc.rewrite.quant_apply import Plan, apply_plan
from optc.rewrite.quant_choice import Choice
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_fit import Fit, fit, sample_columns, weight_error
from optc.rewrite.quant_observe import Seen, observe, tokens_of
from optc.rewrite.quant_search import choose_activations, choose_weights
from optc.rewrite.quant_sites import (
    Site,
    find_sites,
    is_quantised,
    last_products,
    weight_groups,
)
from optc.rewrite.quant_weights import channel_scales, rounding_error

__all__ = ["Quant"]

_TRIAL_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Quant(Pass):
    """Quantise linear layers and embedding tables, keeping wide what measurement says hurts."""

    name: ClassVar[str] = "quant"
    after: ClassVar[tuple[str, ...]] = ("prune", "flash", "kv", "spec")
    promise: ClassVar[str] = Promise.MEASURED

    scheme: str = option(
        "int8",
        "int8: weights and activations; w8: weights only.",
        choices=("int8", "w8"),
    )
    max_drift: float = option(
        0.03,
        "Largest drift on held-out calibration data: KL divergence of next-token distributions in "
        "nats, or relative L2 error of the outputs of a graph without logits.",
        minimum=0.0,
    )
    smooth: str = option(
        "auto",
        "auto: even out the channels of activations by scaling weights; off: do not.",
        choices=("auto", "off"),
    )

    def requires(self, model: ir.Model, ctx: Context) -> None:
        """Int8 activations need a runtime and calibration data."""
        if self.scheme == "w8":
            return
        if ctx.evaluate is None:
            raise UnsupportedError(
                "int8 activations need a runtime to calibrate with",
                where=f"pass '{self.name}'",
                remedy="use quant:scheme=w8",
            )
        if not ctx.calibration:
            raise SampleError(
                "int8 activations need calibration data and there is none",
                where=f"pass '{self.name}'",
                remedy="give --calibration, or use quant:scheme=w8",
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
        errors, unfit = _rounding_errors(found.sites)
        refusals = [*found.refusals, *unfit]
        sites = [site for site in found.sites if site.weight.name in errors]
        if not sites:
            return PassResult(refusals=tuple(refusals))
        choice = self._choose(model, sites, errors, ctx)
        kept = [s for s in sites if choice.plan.width(s) == "float"]
        reason = (
            f"int8 drifts more than {self.max_drift:g}; its weight is among those that hurt most"
        )
        refusals += [Refusal(site.name, reason) for site in kept]
        done = tuple(site.name for site in sites if site not in kept)
        details = {"scheme": self.scheme, "max_drift": self.max_drift, **choice.details(sites)}
        notes = (*cut, *choice.notes(sites)) if done else ()
        apply_plan(model, sites, choice.plan)
        return PassResult(done, tuple(refusals), notes, details)

    def _choose(
        self, model: ir.Model, sites: Sequence[Site], errors: Mapping[str, float], ctx: Context
    ) -> Choice:
        if ctx.evaluate is None or not ctx.calibration:
            return Choice(Plan(frozenset(errors)), errors)
        learnt, judged = _split(ctx.calibration, halves=self.scheme == "int8")
        whole = every_token(model)
        meter = DriftMeter(whole, ctx, judged, ctx.wants)
        weights, readers = frozenset(errors), _readers(sites)
        needs_rows = meter.measure(Plan(weights)) > self.max_drift
        widths = {name: len(sample_columns(users, 1)) for name, users in readers.items()}
        seen = observe(whole, widths, ctx, learnt) if needs_rows or self.scheme == "int8" else {}
        if needs_rows:
            weights = choose_weights(meter, _harms(sites, seen, errors), self.max_drift)
        if self.scheme == "w8":
            return Choice(Plan(weights), errors, meter=meter)
        fits = self._fit(_readers([s for s in sites if s.weight.name in weights]), seen, ctx)
        last = frozenset(_readers(last_products(model, sites)))
        plan = choose_activations(meter, weights, fits, last, self.max_drift)
        tokens = sum(map(tokens_of, learnt))
        return Choice(plan, errors, fits, meter, tokens, held_out=learnt is not judged)

    def _fit(
        self, readers: Mapping[str, Sequence[Site]], seen: Mapping[str, Seen], ctx: Context
    ) -> dict[str, Fit]:
        """The grid of each activation; its channels are evened out if all its weights allow it."""
        fits: dict[str, Fit] = {}
        for name, users in readers.items():
            free = self.smooth == "auto" and all(_reads_alone(site) for site in users)
            fits[name] = fit(seen[name], sample_columns(users), smooth=free)
            ctx.progress("fitting activations", len(fits), len(readers))
        return fits

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        """Every reported site reads an integer matrix now."""
        nodes = {out.name: node for node in model.graph.all_nodes() for out in node.outputs}
        for name in result.sites:
            if not any(v is not None and is_quantised(v) for v in nodes[name].inputs):
                raise PassContractError(f"'{name}' is reported and not quantised", where=self.name)


def _split(samples: Sequence[Feeds], *, halves: bool) -> tuple[Sequence[Feeds], Sequence[Feeds]]:
    """Samples to fit grids to, and samples to measure drift on: the last quarter, up to a bound."""
    count = max(1, len(samples) // 4) if halves and len(samples) > 1 else len(samples)
    judged: list[Feeds] = []
    for feeds in samples[-count:]:
        if not judged or sum(map(tokens_of, judged)) < _TRIAL_TOKENS:
            judged.append(feeds)
    return (samples[:-count], judged) if count < len(samples) else (judged, judged)


def _rounding_errors(sites: Sequence[Site]) -> tuple[dict[str, float], list[Refusal]]:
    """Relative rounding error of each constant, and the sites whose constant is not finite."""
    errors: dict[str, float] = {}
    refusals: list[Refusal] = []
    for group in weight_groups(sites):
        weight, axis = group[0].weight, group[0].axis
        tensor = weight.const_value
        scales = None if tensor is None else channel_scales(tensor, axis)
        if tensor is None or scales is None:
            refusals += [Refusal(s.name, "its weight holds NaN or infinity") for s in group]
            continue
        errors[str(weight.name)] = rounding_error(tensor, scales, axis)
    return errors, refusals


def _readers(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Products by the name of the activation that they read."""
    readers: dict[str, list[Site]] = {}
    for site in sites:
        if site.activation is not None:
            readers.setdefault(str(site.activation.name), []).append(site)
    return readers


def _harms(
    sites: Sequence[Site], seen: Mapping[str, Seen], errors: Mapping[str, float]
) -> dict[str, float]:
    """How far rounding each constant moves the products with it, or the rows looked up in it."""
    harms: dict[str, float] = {}
    for site in sites:
        name = str(site.weight.name)
        harm = errors[name]
        if site.activation is not None:
            harm = weight_error(seen[str(site.activation.name)], sample_columns([site]))
        harms[name] = max(harm, harms.get(name, 0.0))
    return harms


def _reads_alone(site: Site) -> bool:
    """Whether nothing but products with the one activation reads the constant of `site`."""
    users = [user for user, _ in site.weight.uses()]
    behind = [n for u in users if u.op_type == "Transpose" for n, _ in u.outputs[0].uses()]
    readers = [user for user in users if user.op_type != "Transpose"] + behind
    return all(user.inputs[0] is site.activation for user in readers)
