"""What a scheme makes of a model's weights in bytes, told from shapes alone."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.rewrite.quant_scheme import Scheme
from optc.rewrite.quant_sites import find_sites, weight_groups
from optc.rewrite.quant_units import Widths, constant_of, units_of

__all__ = ["Footprint", "footprint"]


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of the weights that every site reads.

    Attributes:
        before: As they are.
        after: At their narrow grids.
        steps: Of those that may be solved, one for each element: how steps are put aside.
    """

    before: int
    after: int
    steps: int


def footprint(model: ir.Model, scheme: Scheme) -> Footprint:
    """Add up the weights of all sites; none is read.

    Args:
        model: The graph, before it is quantised.
        scheme: Says which grids there are.
    """
    sites = find_sites(model).sites
    widths = Widths(scheme, units_of(sites))
    before = after = steps = 0
    for site, *_ in weight_groups(sites):
        constant, grid = constant_of(site), widths.grid(site, is_wide=False)
        size = constant.tensor.nbytes
        before += size
        if grid is None:
            after += size
            continue
        after += grid.bytes(constant.outer, constant.inner, constant.kind.itemsize)
        if site.weight.name not in widths.looked_up:
            steps += constant.outer * constant.inner
    return Footprint(before, after, steps)
