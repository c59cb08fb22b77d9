"""How many bytes of weights a scheme saves, told from shapes alone."""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.streamed import sizes
from optc.rewrite.quant_scheme import Scheme
from optc.rewrite.quant_sites import find_sites, weight_groups

__all__ = ["saved_bytes"]


def saved_bytes(model: ir.Model, scheme: Scheme) -> int:
    """Bytes that a model's weights lose if every site gets its narrow grid; none is read.

    Args:
        model: The graph, before it is quantised.
        scheme: Says which grids there are.
    """
    saved = 0
    for group in weight_groups(find_sites(model).sites):
        tensor, axis = group[0].weight.const_value, group[0].axis
        if tensor is None:
            continue
        is_table = any(site.activation is None for site in group)
        grid = scheme.table if is_table else scheme.narrow
        outer, inner = sizes(tensor)[axis], sizes(tensor)[1 - axis]
        saved += tensor.nbytes - grid.bytes(outer, inner, int(tensor.dtype.itemsize))
    return saved
