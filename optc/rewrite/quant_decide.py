"""Decide how every site is quantised: fit, measure, and keep wide what must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from optc.core.context import Array, Context, Feeds
from optc.rewrite.last_tokens import every_token
from optc.rewrite.quant_calibrate import calibrated
from optc.rewrite.quant_choice import Choice
from optc.rewrite.quant_costs import costs_of
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_fit import Fit, fit, product_error, sample_columns, with_error
from optc.rewrite.quant_observe import Seen, observe, tokens_of
from optc.rewrite.quant_rounding import solve_weights
from optc.rewrite.quant_scheme import Scheme
from optc.rewrite.quant_search import choose_floats, choose_wide
from optc.rewrite.quant_sites import Site, weight_groups
from optc.rewrite.quant_units import Unit, Widths, constant_of, reads_alone, units_of
from optc.rewrite.quant_weights import rounding_error

__all__ = ["Wishes", "decide"]

_TRIAL_TOKENS = 1024
"""Of held-out samples, about so many tokens are run for each plan: whole samples until they are
there. A search takes about ten plans, and calibration data may be long."""


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user asked for.

    Attributes:
        scheme: The grids.
        method: How weights are rounded: `rtn`, `awq`, `gptq` or `awq-gptq`.
        smooth: Whether the channels of activations may be evened out.
        calibrate: How ranges of activations are chosen: `auto` for a searched margin that is judged
            on held-out samples, or one of `optc.rewrite.quant_range.METHODS`.
        max_drift: Largest drift.
        max_wide: How many units may stay wide, whatever the drift; None for any number.
    """

    scheme: Scheme
    method: str
    smooth: bool
    calibrate: str
    max_drift: float
    max_wide: int | None


def decide(model: ir.Model, sites: Sequence[Site], wishes: Wishes, ctx: Context) -> Choice:
    """Plan the widths of `sites`.

    Args:
        model: The graph they were found in; not changed.
        sites: All that may be quantised.
        wishes: What was asked for.
        ctx: Calibration data and an evaluator; without either, everything is rounded to the
            nearest and nothing is measured.
    """
    units = units_of(sites)
    widths = Widths(wishes.scheme, units)
    if ctx.evaluate is None or not ctx.calibration:
        return Choice(widths.plan(frozenset()))
    scheme = wishes.scheme
    has_fits = scheme.rounding == "tensor" or (scheme.block is not None and wishes.smooth)
    fitted = has_fits or wishes.method != "rtn"
    learnt, judged = _split(ctx.calibration, halves=fitted)
    whole = every_token(model)
    meter = DriftMeter(whole, ctx, judged, ctx.wants)
    errors = _errors(sites, widths)
    # a bound on what may stay wide is one on what may stay in float, all the more
    is_much = wishes.max_wide is None and meter.measure(widths.widest()) > wishes.max_drift
    seen = observe(whole, _channels(units), ctx, learnt) if is_much or has_fits else {}
    if is_much:
        widths = choose_floats(meter, widths, _harms(widths, seen), wishes.max_drift)
    if has_fits:
        widths = dataclasses.replace(widths, fits=_fits(whole, widths, seen, wishes, ctx, learnt))
    if wishes.method != "rtn":
        widths = solve_weights(whole, widths, ctx, learnt, wishes.method)
    tokens = sum(map(tokens_of, learnt)) if fitted else 0
    costs = costs_of(whole, widths, errors, meter, ctx, learnt)
    plan = choose_wide(meter, widths, costs.values, wishes.max_drift, wishes.max_wide)
    held_out = learnt is not judged
    return Choice(plan, errors, widths.fits, costs, meter, tokens, held_out=held_out)


def _split(samples: Sequence[Feeds], *, halves: bool) -> tuple[Sequence[Feeds], Sequence[Feeds]]:
    """Samples to fit grids to, and samples to measure drift on: the last quarter, up to a bound."""
    count = max(1, len(samples) // 4) if halves and len(samples) > 1 else len(samples)
    judged: list[Feeds] = []
    for feeds in samples[-count:]:
        if not judged or sum(map(tokens_of, judged)) < _TRIAL_TOKENS:
            judged.append(feeds)
    return (samples[:-count], judged) if count < len(samples) else (judged, judged)


def _errors(sites: Sequence[Site], widths: Widths) -> dict[str, float]:
    """Relative error that rounding each constant to the nearest makes."""
    errors: dict[str, float] = {}
    for group in weight_groups(sites):
        grid = widths.grid(group[0], is_wide=False)
        if grid is not None:
            errors[str(group[0].weight.name)] = rounding_error(constant_of(group[0]), grid)
    return errors


def _channels(units: Sequence[Unit]) -> dict[str, int]:
    """How many channels each activation has, by name."""
    return {u.name: constant_of(u.sites[0]).inner for u in units if not u.is_lookup}


def _harms(widths: Widths, seen: Mapping[str, Seen]) -> dict[str, float]:
    """How far rounding each constant to its wide grid moves the products, or the rows looked up."""
    harms: dict[str, float] = {}
    for unit in widths.units:
        for site in unit.sites:
            name, grid = str(site.weight.name), widths.grid(site, is_wide=True)
            if grid is None:
                harm = 0.0
            elif unit.is_lookup:
                harm = rounding_error(constant_of(site), grid)
            else:
                harm = product_error(seen[unit.name], sample_columns([site]), grid)
            harms[name] = max(harm, harms.get(name, 0.0))
    return harms


def _fits(
    whole: ir.Model,
    widths: Widths,
    seen: Mapping[str, Seen],
    wishes: Wishes,
    ctx: Context,
    samples: Sequence[Feeds],
) -> dict[str, Fit]:
    """How each activation is rounded; channels are evened out if all weights allow it."""
    fits: dict[str, Fit] = {}
    columns: dict[str, Array] = {}
    # of weights in groups too, strengths are compared with one scale for each channel
    grid = dataclasses.replace(wishes.scheme.narrow, group=0)
    for number, unit in enumerate(widths.units):
        sites = [s for s in unit.sites if s.weight.name not in widths.floats]
        if unit.is_lookup or not sites:
            continue
        columns[unit.name] = sample_columns(sites)
        fits[unit.name] = fit(
            seen[unit.name],
            columns[unit.name],
            grid,
            smooth=wishes.smooth and reads_alone(unit),
            block=wishes.scheme.block,
        )
        ctx.progress("fitting activations", number + 1, len(widths.units))
    if wishes.calibrate == "auto":
        return fits
    channels = {name: len(array) for name, array in columns.items()}
    fits = calibrated(whole, fits, channels, wishes.calibrate, ctx, samples)
    return {name: with_error(f, seen[name], columns[name], grid) for name, f in fits.items()}
