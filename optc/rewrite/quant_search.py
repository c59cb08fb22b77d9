"""The widest use of 8 bits whose measured drift stays within a limit.

1. Constants: all in int8; where that alone drifts too far, the ones with the largest rounding error
   stay in float, the fewest that will do.
2. Activations: the ones whose rounding moves the outputs most stay in float, the fewest that will
   do. How much each moves them is estimated from its local error, times a gain that is measured:
   one run with only the activations of the last layer narrow (nothing after it dampens its
   error), one with all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optc.rewrite.quant_apply import Plan
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_fit import Fit

__all__ = ["choose_activations", "choose_weights", "fewest"]


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


def choose_weights(meter: DriftMeter, errors: Mapping[str, float], limit: float) -> frozenset[str]:
    """Which constants become int8.

    Args:
        meter: Measures plans.
        errors: All constants, each with its relative rounding error.
        limit: Largest drift.
    """
    worst_first = sorted(errors, key=lambda name: -errors[name])

    def plan(kept: int) -> Plan:
        return Plan(frozenset(worst_first[kept:]))

    kept = fewest(len(errors), 0, lambda n: meter.measure(plan(n)) <= limit)
    return plan(kept).weights


def choose_activations(
    meter: DriftMeter,
    weights: frozenset[str],
    fits: Mapping[str, Fit],
    last: frozenset[str],
    limit: float,
) -> Plan:
    """Which activations become int8.

    Args:
        meter: Measures plans.
        weights: The constants in int8.
        fits: All activations that meet one of them.
        last: Those that meet a product with no other site after it.
        limit: Largest drift.
    """
    base = meter.measure(Plan(weights))
    harm: dict[str, float] = {}
    # in the order of `fits`: sums of floats depend on it, and sets have none that repeats
    groups = [name for name in fits if name in last], [name for name in fits if name not in last]
    for group in groups:
        squares = {name: fits[name].error ** 2 for name in group}
        if group:
            drift = meter.measure(Plan(weights, {name: fits[name] for name in group}))
            gain = max(drift - base, 0.0) / (sum(squares.values()) or 1.0)
            harm |= {name: gain * square for name, square in squares.items()}
    worst_first = sorted(fits, key=lambda name: -harm[name])

    def plan(kept: int) -> Plan:
        return Plan(weights, {name: fits[name] for name in worst_first[kept:]})

    guess = _predicted([harm[name] for name in worst_first], limit - base)
    return plan(fewest(len(fits), guess, lambda n: meter.measure(plan(n)) <= limit))


def _predicted(harms: Sequence[float], room: float) -> int:
    """How many of the first to leave out so that the sum of the others fits."""
    total = sum(harms)
    for count, harm in enumerate(harms):
        if total <= room:
            return count
        total -= harm
    return len(harms)
