"""Sites that are narrow or wide together: those that read one activation, or look up one table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Mapping, Sequence

from optc.core.context import Array
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_scheme import Scheme
from optc.rewrite.quant_sites import Site
from optc.rewrite.quant_stream import Constant, Solution

__all__ = ["Unit", "Widths", "constant_of", "reads_alone", "source_of", "units_of"]

_SHORTEST = 16
"""The shortest block that ONNX Runtime's `GatherBlockQuantized` and `MatMulNBits` take."""


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """Some sites.

    Attributes:
        name: Of the activation; of the constant where the sites are lookups.
        sites: In graph order, at least one.
    """

    name: str
    sites: tuple[Site, ...]

    @property
    def is_lookup(self) -> bool:
        """Whether its sites look up rows."""
        return self.sites[0].activation is None


def units_of(sites: Sequence[Site]) -> list[Unit]:
    """All sites as units, in the order of their first sites."""
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(source_of(site), []).append(site)
    return [Unit(name, tuple(members)) for name, members in found.items()]


def source_of(site: Site) -> str:
    """Name of the unit that a site belongs to."""
    value = site.weight if site.activation is None else site.activation
    return str(value.name)


def constant_of(site: Site) -> Constant:
    """The weight of a site."""
    tensor = site.weight.const_value
    if tensor is None:
        raise ValueError(f"'{site.name}' has no constant weight")
    return Constant(tensor, site.axis)


@dataclasses.dataclass(frozen=True)
class Widths:
    """Makes plans out of which units stay wide.

    Attributes:
        scheme: The grids.
        units: All units.
        fits: Range and factors of each activation; by token, the factors alone count.
        solved: Steps of constants at the narrow grid that were solved.
        floats: Constants that must stay in float.
        factors: What the channels of activations in float are divided by, by name.
    """

    scheme: Scheme
    units: Sequence[Unit]
    fits: Mapping[str, Fit] = dataclasses.field(default_factory=dict)
    solved: Mapping[str, Solution] = dataclasses.field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    factors: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def looked_up(self) -> frozenset[str]:
        """Constants in which rows are looked up, whether or not products read them too."""
        lookups = [s for unit in self.units for s in unit.sites if unit.is_lookup]
        return frozenset(str(site.weight.name) for site in lookups)

    def choosable(self) -> list[Unit]:
        """Units for which wide is something else than narrow."""
        if self.scheme.rounds_activations:
            return [unit for unit in self.units if not unit.is_lookup]
        return [unit for unit in self.units if self._may_differ(unit)]

    def _may_differ(self, unit: Unit) -> bool:
        pairs = [[self.grid(site, is_wide=wide) for wide in (False, True)] for site in unit.sites]
        return any(narrow != wide for narrow, wide in pairs)

    def grid(self, site: Site, *, is_wide: bool) -> Grid | None:
        """Grid of the weight of a site; None for float."""
        if site.weight.name not in self.looked_up:
            return self.scheme.wide if is_wide else self.scheme.narrow
        grid = self.scheme.wide if is_wide and self.scheme.rounds_activations else self.scheme.table
        if is_wide and self.scheme.wide is None:
            return None
        return None if grid is None else _even(grid, constant_of(site).inner)

    def widest(self) -> Plan:
        """The plan in which every unit is wide."""
        return self.plan({unit.name for unit in self.units})

    def plan(self, wide: Container[str]) -> Plan:
        """The plan in which the units named in `wide`, and what shares their weights, are wide."""
        kept = {str(s.weight.name) for u in self.units if u.name in wide for s in u.sites}
        weights: dict[str, Grid] = {}
        for unit in self.units:
            for site in unit.sites:
                name = str(site.weight.name)
                grid = self.grid(site, is_wide=name in kept)
                if grid is not None and name not in self.floats:
                    weights[name] = grid
        narrow = [u.name for u in self.units if u.name not in wide and not u.is_lookup]
        by_token = frozenset(narrow) if self.scheme.rounding == "token" else frozenset[str]()
        fits = {name: self.fits[name] for name in narrow if name in self.fits}
        factors = dict(self.factors)
        if self.scheme.block is not None:
            smooth = {name: fit.factors for name, fit in fits.items()}
            factors = {name: array for name, array in smooth.items() if array is not None}
            fits = {}
        solved = {n: s for n, s in self.solved.items() if weights.get(n) == s.grid}
        return Plan(weights, fits, by_token, solved, factors)


def _even(grid: Grid, inner: int) -> Grid:
    """A grid whose groups divide a row: lookups in blocks have no short last block."""
    group = grid.group
    while group > _SHORTEST and inner % group:
        group //= 2
    fits = group and inner % group == 0
    return dataclasses.replace(grid, group=group if fits else 0)


def reads_alone(unit: Unit) -> bool:
    """Whether nothing but products with its one activation reads the constants of a unit."""
    return all(_reads_alone(site) for site in unit.sites)


def _reads_alone(site: Site) -> bool:
    users = [user for user, _ in site.weight.uses()]
    behind = [n for u in users if u.op_type == "Transpose" for n, _ in u.outputs[0].uses()]
    readers = [user for user in users if user.op_type != "Transpose"] + behind
    return all(user.inputs[0] is site.activation for user in readers)
