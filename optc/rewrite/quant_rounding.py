"""Choose the steps of weights by what they do to real activations, one place after the other.

Two walks go through the graph side by side: one as it was, one in which every place before is
quantised already. At each place the weights are solved for so that, given what the quantised graph
hands them, they answer what the float graph answers (GPTQ, Frantar et al. 2022, arXiv 2210.17323;
aiming at the float graph's activations: Qronos, Zhang et al. 2025, arXiv 2505.11695). One place is
in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Context, Feeds
from optc.core.errors import SampleError
from optc.ir.streamed import EVERY
from optc.rewrite.quant_apply import write_plan
from optc.rewrite.quant_gram import Inputs
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites
from optc.rewrite.quant_solve import solve
from optc.rewrite.quant_stream import Solution
from optc.rewrite.quant_units import Unit, Widths, constant_of
from optc.rewrite.quant_walk import Walk

__all__ = ["solve_weights"]


def solve_weights(
    model: ir.Model, widths: Widths, ctx: Context, samples: Sequence[Feeds]
) -> dict[str, Solution]:
    """Steps of every weight at its narrow grid, by name of the constant.

    Constants that rows are looked up in are rounded to the nearest: what a lookup gives must be
    the row itself, whatever the product tied to it reads.

    Args:
        model: The float graph; not changed.
        widths: Units and grids.
        ctx: Has the evaluator.
        samples: Calibration inputs.

    Raises:
        SampleError: An activation is not finite.
    """
    if ctx.evaluate is None:
        return {}
    trial = model.clone()
    places = {site.name: site for site in find_sites(trial).sites}
    original = {site.name: site for site in find_sites(model).sites}
    writer = NodeWriter(trial)
    exact = Walk(model, ctx.evaluate, samples)
    moved = Walk(trial, ctx.evaluate, samples)
    found: dict[str, Solution] = {}
    units = [unit for unit in widths.units if _is_solved(unit, widths)]
    for number, unit in enumerate(units):
        sites = [places[site.name] for site in unit.sites]
        first = original[unit.sites[0].name].node
        inputs = _observed(
            exact.advance(first, unit.name), moved.advance(sites[0].node, unit.name), unit.name
        )
        for site in sites:
            grid = widths.grid(site, is_wide=False)
            name = str(site.weight.name)
            if grid is not None and name not in found and name not in widths.floats:
                constant = constant_of(site)
                rows = constant.read(EVERY, EVERY)
                solved = solve(rows, inputs, grid, constant.kind)
                found[name] = Solution(_Held(solved.steps), solved.scales, solved.zeros, grid)
        weights = {str(s.weight.name) for s in sites} & set(found)
        write_plan(writer, sites, Plan({n: found[n].grid for n in weights}, solved=found))
        ctx.progress("solving for weights", number + 1, len(units))
    return found


def _is_solved(unit: Unit, widths: Widths) -> bool:
    names = {str(site.weight.name) for site in unit.sites}
    return not unit.is_lookup and not names & widths.looked_up and not names & widths.floats


class _Held:
    """Steps in memory, a byte each."""

    def __init__(self, steps: Array):
        self._steps = steps.astype(np.uint8 if steps.min() >= 0 else np.int8)

    def read(self, rows: slice, columns: slice) -> Array:
        return self._steps[rows, columns]


def _observed(exact: Iterator[Array], moved: Iterator[Array], name: str) -> Inputs:
    """Second moments of an activation [..., K] in the quantised graph, and with the float one."""
    gram = cross = None
    for index, (want, got) in enumerate(zip(exact, moved, strict=True)):
        left, right = (a.reshape(-1, a.shape[-1]).astype(np.float32) for a in (got, want))
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            raise SampleError(
                f"calibration sample {index} gives NaN or infinity at '{name}'",
                remedy="give other calibration data, or look for what the model does on it",
            )
        first, second = left.T @ left, left.T @ right
        gram = first if gram is None else gram + first
        cross = second if cross is None else cross + second
    if gram is None:
        raise SampleError("there are no calibration samples")
    return Inputs.of(gram, cross=cross)
