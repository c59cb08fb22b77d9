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

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Context, Feeds
from optc.core.errors import SampleError
from optc.core.scratch import Scratch
from optc.ir.streamed import EVERY
from optc.rewrite.quant_apply import write_plan
from optc.rewrite.quant_awq import equalise
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites
from optc.rewrite.quant_solve import nearest, solve
from optc.rewrite.quant_stream import Constant, Solution
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
class _Moments:
    """What was seen of one activation: x in the float graph, y in the quantised one.

    Attributes:
        gram: y'y, [K,K].
        cross: y'x, [K,K].
        magnitudes: Mean of |y|, [K].
    """

    gram: Array
    cross: Array
    magnitudes: Array

    def divided(self, factors: Array) -> _Moments:
        """The same of channels divided by `factors` [K]."""
        outer = np.outer(factors, factors)
        return _Moments(self.gram / outer, self.cross / outer, self.magnitudes / factors)


def _equalised(unit: Unit, widths: Widths, seen: _Moments) -> Array:
    """AWQ's factors, for all weights of a unit together."""
    constants = [constant_of(site) for site in unit.sites]
    rows = np.concatenate([constant.read(EVERY, EVERY) for constant in constants])
    grid = widths.grid(unit.sites[0], is_wide=False)
    if grid is None:
        return np.ones(len(seen.gram), np.float32)
    return equalise(rows, seen.magnitudes, Inputs.of(seen.gram), grid, constants[0].kind)


def _solved(
    unit: Unit,
    widths: Widths,
    seen: _Moments,
    factors: Array | None,
    method: str,
    scratch: Scratch,
) -> dict[str, Solution]:
    inputs = Inputs.of(seen.gram, cross=seen.cross)
    found: dict[str, Solution] = {}
    for site in unit.sites:
        grid, tensor = widths.grid(site, is_wide=False), site.weight.const_value
        if grid is None or tensor is None:
            continue
        constant = Constant(tensor, site.axis, factors)
        rows, kind = constant.read(EVERY, EVERY), constant.kind
        if method == "awq":
            chosen = nearest(rows, grid, kind, power=seen.gram.diagonal())
        else:
            chosen = solve(rows, inputs, grid, kind)
        byte = np.int8 if grid.symmetric else np.uint8
        steps = scratch.keep(chosen.steps.astype(byte))
        found[str(site.weight.name)] = Solution(steps, chosen.scales, chosen.zeros, grid)
    return found


def _observed(exact: Iterator[Array], moved: Iterator[Array], name: str) -> _Moments:
    """Both activations [..., K], sample by sample."""
    total: list[Array] = []
    tokens = 0
    for index, (want, got) in enumerate(zip(exact, moved, strict=True)):
        x, y = (a.reshape(-1, a.shape[-1]).astype(np.float32, copy=False) for a in (want, got))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise SampleError(
                f"calibration sample {index} gives NaN or infinity at '{name}'",
                remedy="give other calibration data, or look for what the model does on it",
            )
        sums = [y.T @ y, y.T @ x, np.abs(y).sum(axis=0)]
        total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        tokens += len(y)
    gram, cross, magnitudes = total
    return _Moments(gram, cross, magnitudes / max(tokens, 1))
