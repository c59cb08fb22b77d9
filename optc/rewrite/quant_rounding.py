"""Choose the steps of weights by what they do to real activations, one place after the other.

Two walks go through the graph side by side: one as it was, one in which every place before is
quantised already. At each place the weights are solved for so that, given what the quantised graph
hands them, they answer what the float graph answers (GPTQ, Frantar et al. 2022, arXiv 2210.17323;
aiming at the float graph's activations: Qronos, Zhang et al. 2025, arXiv 2505.11695). One place is
in memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Context, Feeds
from optc.core.errors import SampleError
from optc.core.scratch import Scratch
from optc.ir.streamed import EVERY
from optc.rewrite.quant_apply import write_plan
from optc.rewrite.quant_awq import equalise
from optc.rewrite.quant_damping import Moments, damped
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites
from optc.rewrite.quant_solve import nearest, solve
from optc.rewrite.quant_stream import Solution
from optc.rewrite.quant_units import Unit, Widths, constant_of, reads_alone
from optc.rewrite.quant_walk import Walk

__all__ = ["solve_weights"]


def solve_weights(
    model: ir.Model, widths: Widths, ctx: Context, samples: Sequence[Feeds], method: str
) -> Widths:
    """Choose steps of every weight at its narrow grid, and factors on its input channels.

    Constants that rows are looked up in are rounded to the nearest: what a lookup gives must be
    the row itself, whatever the product tied to it reads.

    Args:
        model: The float graph; not changed.
        widths: Units and grids.
        ctx: Has the evaluator.
        samples: Calibration inputs.
        method: `gptq`, `awq` (factors, then the nearest step in a searched range) or `awq-gptq`.

    Returns:
        `widths` with what was chosen.

    Raises:
        SampleError: An activation is not finite.
    """
    if ctx.evaluate is None:
        return widths
    trial = model.clone()
    places = {site.name: site for site in find_sites(trial).sites}
    firsts = {site.name: site.node for site in find_sites(model).sites}
    writer, scratch = NodeWriter(trial), Scratch()
    exact = Walk(model, ctx.evaluate, samples)
    moved = Walk(trial, ctx.evaluate, samples)
    solved: dict[str, Solution] = {}
    factors: dict[str, Array] = {}
    units = [unit for unit in widths.units if _is_solved(unit, widths)]
    for number, unit in enumerate(units):
        here = Unit(unit.name, tuple(places[site.name] for site in unit.sites))
        seen = _observed(
            exact.advance(firsts[unit.sites[0].name], unit.name),
            moved.advance(here.sites[0].node, unit.name),
            unit.name,
        )
        if method != "gptq" and reads_alone(unit):
            factors[unit.name] = _equalised(here, widths, seen)
            seen = seen.divided(factors[unit.name])
        found = _solved(here, widths, seen, factors.get(unit.name), method, scratch)
        solved |= found
        plan = Plan({n: s.grid for n, s in found.items()}, solved=found, factors=factors)
        if unit.name in write_plan(writer, here.sites, plan):
            moved.divide(unit.name, factors[unit.name])
        ctx.progress("solving for weights", number + 1, len(units))
    return dataclasses.replace(widths, solved=solved, factors=factors)


def _is_solved(unit: Unit, widths: Widths) -> bool:
    names = {str(site.weight.name) for site in unit.sites}
    return not unit.is_lookup and not names & widths.looked_up and not names & widths.floats


@dataclasses.dataclass(frozen=True)
class _Flow:
    """What was seen of one activation: in the quantised graph, and beside it in the float one.

    Attributes:
        halves: Second moments on each half of the samples.
        magnitudes: Mean magnitude of each channel in the quantised graph, [K].
    """

    halves: tuple[Moments, Moments]
    magnitudes: Array

    def divided(self, factors: Array) -> _Flow:
        """The same of channels divided by `factors` [K]."""
        outer = np.outer(factors, factors)
        first, second = (Moments(m.gram / outer, m.cross / outer) for m in self.halves)
        return _Flow((first, second), self.magnitudes / factors)


def _equalised(unit: Unit, widths: Widths, seen: _Flow) -> Array:
    """AWQ's factors, for all weights of a unit together."""
    grid, whole = widths.grid(unit.sites[0], is_wide=False), seen.halves[0] + seen.halves[1]
    if grid is None:
        return np.ones(len(whole.gram), np.float32)
    inputs = Inputs.of(whole.gram)
    return equalise(_rows(unit, None), seen.magnitudes, inputs, grid, _kind(unit))


def _solved(
    unit: Unit,
    widths: Widths,
    seen: _Flow,
    factors: Array | None,
    method: str,
    scratch: Scratch,
) -> dict[str, Solution]:
    grid, kind = widths.grid(unit.sites[0], is_wide=False), _kind(unit)
    if grid is None:
        return {}
    rows = _rows(unit, factors)
    if method == "awq":
        power = (seen.halves[0].gram + seen.halves[1].gram).diagonal()
        chosen = nearest(rows, grid, kind, power=power)
    else:
        chosen = solve(rows, damped(seen.halves, rows, grid, kind), grid, kind)
    byte = np.int8 if grid.symmetric else np.uint8
    found: dict[str, Solution] = {}
    start = 0
    for site in unit.sites:
        part = slice(start, start + constant_of(site).outer)
        steps = scratch.keep(chosen.steps[part].astype(byte))
        found[str(site.weight.name)] = Solution(
            steps, chosen.scales[part], chosen.zeros[part], grid
        )
        start = part.stop
    return found


def _rows(unit: Unit, factors: Array | None) -> Array:
    """The weights of all sites, one below the other, with their input channels multiplied."""
    rows = np.concatenate([constant_of(site).read(EVERY, EVERY) for site in unit.sites])
    return rows if factors is None else rows * factors


def _kind(unit: Unit) -> np.dtype[Any]:
    return constant_of(unit.sites[0]).kind


def _observed(exact: Iterator[Array], moved: Iterator[Array], name: str) -> _Flow:
    """Both activations [..., K], sample by sample; samples go to the two halves in turn."""
    halves: list[Moments | None] = [None, None]
    last: tuple[Array, Array] | None = None
    magnitudes: Array = np.zeros(0)
    tokens = count = 0
    for count, (want, got) in enumerate(zip(exact, moved, strict=True), 1):
        x, y = (a.reshape(-1, a.shape[-1]).astype(np.float32, copy=False) for a in (want, got))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise SampleError(
                f"calibration sample {count - 1} gives NaN or infinity at '{name}'",
                remedy="give other calibration data, or look for what the model does on it",
            )
        new, before = Moments.of(y, x), halves[count % 2]
        halves[count % 2] = new if before is None else before + new
        sums = np.abs(y).sum(axis=0)
        magnitudes = magnitudes + sums if tokens else sums
        tokens, last = tokens + len(y), (y, x)
    if last is None:
        raise SampleError("there are no calibration samples")
    if count == 1:  # the only sample's rows, in two halves
        y, x = last
        halves = [Moments.of(y[part::2], x[part::2]) for part in (0, 1)]
    first, second = (half for half in halves if half is not None)
    return _Flow((first, second), magnitudes / tokens)
