"""What `quant` chose and why, for the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optc.ir.streamed import sizes
from optc.rewrite.quant_apply import Plan
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_sites import Site, weight_groups

__all__ = ["Choice"]

_WIDTHS = {"w8a8": "W8A8", "w8": "W8 (int8 weights, float activations)", "float": "float"}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A plan and its evidence.

    Attributes:
        plan: The widths.
        errors: Relative rounding error of each constant.
        fits: The grid of each activation; empty where activations were not looked at.
        meter: What measured the drift; None where nothing was measured.
        seen_tokens: Calibration tokens that the grids were fitted to.
        held_out: Whether drift was measured on other samples than those.
    """

    plan: Plan
    errors: Mapping[str, float]
    fits: Mapping[str, Fit] = dataclasses.field(default_factory=dict)
    meter: DriftMeter | None = None
    seen_tokens: int = 0
    held_out: bool = False

    @property
    def drift(self) -> float | None:
        """Measured drift of the plan."""
        return None if self.meter is None else self.meter.measure(self.plan)

    def notes(self, sites: Sequence[Site]) -> tuple[str, ...]:
        """One sentence: how many of `sites`, at least one, have which width, and the drift."""
        widths = [self.plan.width(site) for site in sites]
        found = [(widths.count(name), words) for name, words in _WIDTHS.items() if name in widths]
        (count, words), *others = found
        counts = f"{count} of {len(sites)} sites {words}"
        counts += "".join(f", {count} {words}" for count, words in others)
        if self.meter is None:
            return (f"{counts}; drift was not measured, there is no calibration data",)
        kind = "held-out calibration tokens" if self.held_out else "calibration tokens"
        measured = f"{self.meter.metric} {self.drift:.4f} on {self.meter.tokens} {kind}"
        return (f"{counts}; {measured}",)

    def details(self, sites: Sequence[Site]) -> dict[str, Any]:
        """Everything, in JSON types."""
        found: dict[str, Any] = {
            "sites": [self._site(site) for site in sites],
            "weight_bytes": self._bytes(sites),
        }
        if self.meter is not None:
            found |= {
                "drift": self.drift,
                "drift_metric": self.meter.metric,
                "drift_tokens": self.meter.tokens,
                "drift_held_out": self.held_out,
                "fitted_tokens": self.seen_tokens,
                "trials": [dataclasses.asdict(trial) for trial in self.meter.trials],
            }
        return found

    def _site(self, site: Site) -> dict[str, Any]:
        width = self.plan.width(site)
        row: dict[str, Any] = {
            "site": site.name,
            "width": width,
            "weight_error": self.errors[str(site.weight.name)],
        }
        fit = self.fits.get(str(site.activation.name)) if site.activation is not None else None
        if fit is not None:
            row |= {"activation": str(site.activation.name) if site.activation else ""}
            row |= {"activation_error": fit.error, "smooth": fit.strength}
        return row

    def _bytes(self, sites: Sequence[Site]) -> dict[str, int]:
        """Bytes of the constants that became int8: as they were, and with their scales now."""
        before = after = 0
        for group in weight_groups(s for s in sites if self.plan.width(s) != "float"):
            tensor, axis = group[0].weight.const_value, group[0].axis
            if tensor is not None:
                before += tensor.nbytes
                scales = sizes(tensor)[axis] * np.dtype(tensor.dtype.numpy()).itemsize
                after += tensor.size + scales
        return {"before": before, "after": after}
