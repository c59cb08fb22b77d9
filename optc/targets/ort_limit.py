"""How many tokens a lowered graph knows positions for, where a table says so.

Learned position embeddings, and tables of rotations, are a `Gather` from an initializer by
positions. A row longer than the table would fail in the middle of a generation; so the limit is
noted in the engine, and what does not fit is refused before anything is run.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.core.errors import UnsupportedError
from optc.ir.dependence import inputs_read
from optc.ir.interface import LENGTHS, cache_ports, ports
from optc.targets.evaluate import OrtEvaluator
from optc.targets.ort_cache import MOST_TOKENS
from optc.targets.ort_tables import tables

__all__ = ["note_most_tokens", "position_limit"]


def note_most_tokens(model: ir.Model) -> None:
    """Write into a lowered graph's metadata how many tokens a row may have, where that is known."""
    model.metadata_props.pop(MOST_TOKENS, None)  # whatever the model came with
    limit = position_limit(model)
    if limit is not None:
        model.metadata_props[MOST_TOKENS] = str(limit)


def position_limit(model: ir.Model) -> int | None:
    """The smallest number of positions among a graph's tables; None where it has none.

    A table is one of positions if its rows are chosen by `cache_lengths` and sizes only, and a row
    that is longer reads as much further on, to behind the table's end.
    """
    if all(value.name != LENGTHS for value in model.graph.inputs):
        return None
    reads = inputs_read(model)
    found = [
        (count, indices)
        for count, indices in tables(model)
        if {value.name for value in reads.get(indices, ())} == {LENGTHS}
    ]
    if not found:
        return None
    # Where a fixed cache ends first, its end is far enough.
    fixed = [cache.capacity for cache in cache_ports(ports(model.graph.inputs)) if cache.capacity]
    far = min([max(count for count, _ in found), *(capacity - 1 for capacity in fixed)])
    limits = [_limit(model, count, indices, far) for count, indices in found]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(model: ir.Model, count: int, indices: ir.Value, far: int) -> int | None:
    name = str(indices.name)
    feeds = (_feeds(model, length) for length in (0, far))
    try:
        first, later = (found[name] for found in OrtEvaluator()(model, feeds, fetch=[name]))
    except UnsupportedError:
        return None  # chosen by what another table holds, which ends before
    if not first.size or (later - first != far).any():
        return None
    return count - int(first.max())


def _feeds(model: ir.Model, length: int) -> dict[str, Array]:
    """One token of one row that has `length` tokens in its cache; nothing else matters.

    A past that grows has as many: zeros, one array for all of them, and no memory is taken up by
    zeros that nobody writes.
    """
    inputs = ports(model.graph.inputs)
    growing = {c.past for c in cache_ports(inputs) if c.capacity is None and not c.is_cross}
    zeros: dict[object, Array] = {}
    feeds = {}
    for port in inputs:
        shape = [dim if isinstance(dim, int) else 1 for dim in port.shape]
        if port.name in growing:
            shape[2] = length
        same = zeros.setdefault((*shape, port.dtype), np.zeros(shape, port.dtype))
        feeds[port.name] = same
    return feeds | {LENGTHS: np.full_like(feeds[LENGTHS], length)}
