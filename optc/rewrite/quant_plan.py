"""What becomes of each site: which grid its weight gets, and how its activation is rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from optc.core.context import Array
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_sites import Site
from optc.rewrite.quant_stream import Solution

__all__ = ["Plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Widths of all sites.

    Attributes:
        weights: Grid of each constant that is quantised, by name.
        activations: Activations with one range for all data, by name.
        tokens: Activations with a range for each token, by name.
        solved: Steps of constants that are not simply rounded to the nearest, by name.
        factors: What the channels of an activation in float are divided by, and those of the
            weights it meets multiplied by, [K], by name of the activation.
    """

    weights: Mapping[str, Grid]
    activations: Mapping[str, Fit] = dataclasses.field(default_factory=dict)
    tokens: frozenset[str] = frozenset()
    solved: Mapping[str, Solution] = dataclasses.field(default_factory=dict)
    factors: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    def width(self, site: Site) -> str:
        """Such as `w8a8`, `w4`, or `float`."""
        grid = self.weights.get(str(site.weight.name))
        if grid is None:
            return "float"
        return f"w{grid.bits}a8" if self.is_narrow(site) else f"w{grid.bits}"

    def is_narrow(self, site: Site) -> bool:
        """Whether the activation of `site` is rounded before the product."""
        if site.activation is None or site.weight.name not in self.weights:
            return False
        return site.activation.name in self.activations or site.activation.name in self.tokens

    def divisor(self, site: Site) -> Array | None:
        """What the channels of the activation of `site` are divided by; None for nothing."""
        if site.activation is None or site.weight.name not in self.weights:
            return None
        name = str(site.activation.name)
        fit = self.activations.get(name)
        return self.factors.get(name) if fit is None else fit.factors
