"""What `quant` chose and why, for the report."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optc.rewrite.quant_costs import Costs
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import Site, weight_groups
from optc.rewrite.quant_units import constant_of, source_of

__all__ = ["Choice"]

_WIDTHS = {
    "w8a8": "W8A8",
    "w4": "W4 (4-bit weights, float activations)",
    "w8": "W8 (int8 weights, float activations)",
    "float": "float",
}

_NAMED = 3
_ESTIMATED = "estimated from rounding errors, as the graph takes no batch of copies"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A plan and its evidence.

    Attributes:
        plan: The widths.
        errors: Relative rounding error of each constant; empty where nothing was measured.
        fits: The grid of each activation; empty where activations are not rounded per tensor.
        costs: Drift that each unit causes by itself.
        meter: What measured the drift; None where nothing was measured.
        seen_tokens: Calibration tokens that grids and steps were fitted to.
        held_out: Whether drift was measured on other samples than those.
    """

    plan: Plan
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fits: Mapping[str, Fit] = dataclasses.field(default_factory=dict)
    costs: Costs = dataclasses.field(default_factory=Costs)
    meter: DriftMeter | None = None
    seen_tokens: int = 0
    held_out: bool = False

    @property
    def drift(self) -> float | None:
        """Measured drift of the plan."""
        return None if self.meter is None else self.meter.measure(self.plan)

    def notes(self, sites: Sequence[Site]) -> tuple[str, ...]:
        """How many of `sites`, at least one, have which width, and the drift; then the worst."""
        counts = collections.Counter(self._width(site) for site in sites)
        order = [*_WIDTHS, *(name for name in counts if name not in _WIDTHS)]
        found = [(counts[name], _WIDTHS.get(name, name)) for name in order if counts[name]]
        (count, words), *others = found
        said = f"{count} of {len(sites)} sites {words}"
        said += "".join(f", {count} {words}" for count, words in others)
        if self.meter is None:
            return (f"{said}; drift was not measured, there is no calibration data",)
        kind = "held-out calibration tokens" if self.held_out else "calibration tokens"
        measured = f"{self.meter.metric} {self.drift:.4f} on {self.meter.tokens} {kind}"
        return tuple(filter(None, (f"{said}; {measured}", self._worst(sites))))

    def _worst(self, sites: Sequence[Site]) -> str:
        """What drifts most by itself, with the width it got; empty where nothing is known of it."""
        firsts, costs = {source_of(site): site for site in reversed(sites)}, self.costs.values
        costly = sorted((n for n in firsts if costs.get(n)), key=lambda n: -costs[n])
        said = [
            f"{firsts[name].name} {costs[name]:.1e} ({self._width(firsts[name])})"
            for name in costly[:_NAMED]
        ]
        kind = "" if self.costs.is_measured else f", {_ESTIMATED}"
        return f"most drift by itself{kind}: {', '.join(said)}" if said else ""

    def details(self, sites: Sequence[Site]) -> dict[str, Any]:
        """Everything, in JSON types."""
        found: dict[str, Any] = {
            "sites": [self._site(site) for site in sites],
            "weight_bytes": self._bytes(sites),
        }
        if self.meter is not None:
            found |= {
                "drift": None if self.drift is None else _finite(self.drift),
                "drift_metric": self.meter.metric,
                "drift_tokens": self.meter.tokens,
                "drift_held_out": self.held_out,
                "costs_measured": self.costs.is_measured,
                "fitted_tokens": self.seen_tokens,
                "trials": [
                    dataclasses.asdict(trial) | {"drift": _finite(trial.drift)}
                    for trial in self.meter.trials
                ],
            }
        return found

    def _width(self, site: Site) -> str:
        grid = self.plan.weights.get(str(site.weight.name))
        width = self.plan.width(site)
        return width.replace("w", "e4m3 w", 1) if grid is not None and grid.is_float else width

    def _site(self, site: Site) -> dict[str, Any]:
        grid = self.plan.weights.get(str(site.weight.name))
        row: dict[str, Any] = {"site": site.name, "width": self.plan.width(site)}
        if grid is not None:
            row |= {"group": grid.group, "solved": site.weight.name in self.plan.solved}
        if site.weight.name in self.errors:
            row["weight_error"] = self.errors[str(site.weight.name)]
        if site.activation is not None:
            row["activation"] = str(site.activation.name)
        source = source_of(site)
        if source in self.costs.values:
            row["cost"] = _finite(self.costs.values[source])
        if source in self.fits:
            fit = self.fits[source]
            row |= {"activation_error": _finite(fit.error), "smooth": fit.strength}
        return row

    def _bytes(self, sites: Sequence[Site]) -> dict[str, int]:
        """Bytes of the constants that were quantised: as they were, and with their scales now."""
        before = after = 0
        for group in weight_groups(s for s in sites if self.plan.width(s) != "float"):
            constant, grid = constant_of(group[0]), self.plan.weights[str(group[0].weight.name)]
            before += constant.tensor.nbytes
            size = np.dtype(constant.kind).itemsize
            after += grid.bytes(constant.outer, constant.inner, size)
        return {"before": before, "after": after}


def _finite(number: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return number if math.isfinite(number) else None
