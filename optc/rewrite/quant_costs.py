"""What each unit costs by itself: measured, or where that cannot be, estimated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from optc.core.context import Context, Feeds
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_sensitivity import sensitivities
from optc.rewrite.quant_units import Unit, Widths

__all__ = ["Costs", "costs_of"]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Drift that each unit causes by itself.

    Attributes:
        values: By name of the unit.
        is_measured: Whether each was measured by running the graph; else they are guessed from
            rounding errors, and only their sum was measured.
    """

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    is_measured: bool = True


def costs_of(
    model: ir.Model,
    widths: Widths,
    errors: Mapping[str, float],
    meter: DriftMeter,
    ctx: Context,
    samples: Sequence[Feeds],
) -> Costs:
    """What each unit of `widths` that may stay wide costs if it does not.

    Args:
        model: The float graph; not changed.
        widths: Units and how they are quantised.
        errors: Relative rounding error of each constant.
        meter: Measures plans.
        ctx: Has the evaluator.
        samples: Calibration inputs.
    """
    units = widths.choosable()
    if not units:
        return Costs()
    narrow = widths.plan(frozenset())
    if found := sensitivities(model, units, narrow, ctx, samples):
        return Costs(found | _alone(meter, widths, [u for u in units if u.name not in found]))
    squares = {unit.name: _local_error(unit, widths, errors) ** 2 for unit in units}
    base = meter.measure(widths.plan({unit.name for unit in units}))
    gain = max(meter.measure(narrow) - base, 0.0) / (sum(squares.values()) or 1.0)
    return Costs({name: gain * square for name, square in squares.items()}, is_measured=False)


def _alone(meter: DriftMeter, widths: Widths, units: Sequence[Unit]) -> dict[str, float]:
    """Costs of units that have no part in a batch, such as those that read a class token.

    They are few, and each is measured in a run of its own.
    """
    if not units:
        return {}
    names = {unit.name for unit in widths.units}
    base = meter.measure(widths.widest())
    drifts = {unit.name: meter.measure(widths.plan(names - {unit.name})) for unit in units}
    return {name: max(drift - base, 0.0) for name, drift in drifts.items()}


def _local_error(unit: Unit, widths: Widths, errors: Mapping[str, float]) -> float:
    """Relative error of its products, or of its weights where activations are not rounded."""
    fit = widths.fits.get(unit.name)
    if fit is not None:
        return fit.error
    return max(errors.get(str(site.weight.name), 0.0) for site in unit.sites)
