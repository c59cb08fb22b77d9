"""The fewest units kept wide whose measured drift is within a limit.

1. Constants: where even with all units wide the graph drifts too far, the constants with the
   largest rounding error stay in float, the fewest that will do.
2. Units: those that move the outputs most stay wide, the fewest that will do.

What a unit costs by itself is measured or estimated beforehand; costs of units that are small by
themselves add up, nearly, which is where the search starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_units import Widths

__all__ = ["choose_floats", "choose_wide", "fewest"]


def fewest(total: int, start: int, fits: Callable[[int], bool]) -> int:
    """The smallest n in [0, total] for which `fits(n)`, taking `fits(total)` as true.

    Bisection around a guess, with steps that double: few calls where the guess is good.

    Args:
        total: Largest n.
        start: The guess.
        fits: Monotone: true from some n on.
    """
    low, high = -1, total  # fits(low) is false, fits(high) is true
    probe, step = start, 1
    while high - low > 1:
        probe = probe if low < probe < high else (low + high) // 2
        if fits(probe):
            high, probe = probe, probe - step
        else:
            low, probe = probe, probe + step
        step *= 2
    return high


def choose_floats(
    meter: DriftMeter, widths: Widths, harms: Mapping[str, float], limit: float
) -> Widths:
    """Which constants stay in float, with every unit wide.

    Args:
        meter: Measures plans.
        widths: Makes plans.
        harms: All constants, each with how much rounding it hurts.
        limit: Largest drift.

    Returns:
        `widths` with those constants in float.
    """
    worst_first = sorted(harms, key=lambda name: -harms[name])

    def leaving(kept: int) -> Widths:
        return dataclasses.replace(widths, floats=frozenset(worst_first[:kept]))

    def fits(kept: int) -> bool:
        return meter.measure(leaving(kept).widest()) <= limit

    return leaving(fewest(len(harms), 0, fits))


def choose_wide(
    meter: DriftMeter, widths: Widths, costs: Mapping[str, float], limit: float, most: int | None
) -> Plan:
    """Which units stay wide.

    Args:
        meter: Measures plans.
        widths: Makes plans; the one in which every unit is wide is taken to be within the limit.
        costs: Drift by unit, each by itself.
        limit: Largest drift.
        most: How many units may stay wide, whatever the drift then is; None for any number.
    """
    units = sorted(widths.choosable(), key=lambda unit: -costs.get(unit.name, 0.0))
    bound = len(units) if most is None else min(most, len(units))

    def plan(kept: int) -> Plan:
        return widths.plan({unit.name for unit in units[:kept]})

    def fits(kept: int) -> bool:
        return meter.measure(plan(kept)) <= limit

    base = meter.measure(plan(len(units)))
    guess = _predicted([costs.get(unit.name, 0.0) for unit in units], limit - base)
    return plan(fewest(bound, min(guess, bound), fits))


def _predicted(costs: Sequence[float], room: float) -> int:
    """How many of the first to leave out so that the sum of the others fits."""
    total = sum(costs)
    for count, cost in enumerate(costs):
        if total <= room:
            return count
        total -= cost
    return len(costs)
