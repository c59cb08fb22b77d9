"""What an encoder takes beside a decoder with caches: how many tokens, and which ids.

Both are read from tables: a `Gather` by the tokens has a row for each id; one by what only sizes
say has a row for each position. A text that needs more would fail inside the engine, in words of
its nodes; so both numbers are noted in it, and are checked before anything is run.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.core.errors import UnsupportedError
from optc.core.session import EncoderLimits
from optc.ir.interface import LENGTHS, PADDING, TOKENS, cache_ports, ports
from optc.ir.probe import fixed_values
from optc.targets.evaluate import OrtEvaluator
from optc.targets.ort_session import ENCODER_IDS, ENCODER_TOKENS
from optc.targets.ort_tables import tables

__all__ = ["encoder_limits_of", "note_encoder"]

_SAME = frozenset({"Cast", "Identity", "Reshape"})


def note_encoder(model: ir.Model) -> None:
    """Write into a lowered graph's metadata what its encoder takes; see `encoder_limits_of`."""
    found = encoder_limits_of(model)
    for key, number in ((ENCODER_TOKENS, found.tokens), (ENCODER_IDS, found.ids)):
        model.metadata_props.pop(key, None)  # whatever the model came with
        if number is not None:
            model.metadata_props[key] = str(number)


def encoder_limits_of(model: ir.Model) -> EncoderLimits:
    """What an encoder takes, as far as tables of the main graph say.

    Args:
        model: A graph with caches, its encoder in line.
    """
    caches = cache_ports(ports(model.graph.inputs))
    tokens = next((v for v in model.graph.inputs if v.name == TOKENS), None)
    if tokens is None or not any(cache.is_cross for cache in caches):
        return EncoderLimits()
    found, fixed = list(tables(model)), fixed_values(model)
    ids = [rows for rows, indices in found if _is_same(indices, tokens)]
    sized = [(rows, indices) for rows, indices in found if fixed.get(indices)]
    numbers = [_positions(model, rows, indices) for rows, indices in sized]
    places = [number for number in numbers if number is not None]
    return EncoderLimits(min(places, default=None), min(ids, default=None))


def _is_same(value: ir.Value, tokens: ir.Value) -> bool:
    """Whether a value holds the tokens, in another shape or type perhaps."""
    while (node := value.producer()) is not None and node.op_type in _SAME:
        source = node.inputs[0]
        if source is None:
            return False
        value = source
    return value is tokens


def _positions(model: ir.Model, rows: int, indices: ir.Value) -> int | None:
    """Tokens of the encoder that a table has rows for; None if it is not read one row a token.

    One token more than there are rows: what stops at the last row has no limit.
    """
    name = str(indices.name)
    feeds = (_feeds(model, count) for count in (1, rows + 1))
    try:
        first, last = (found[name] for found in OrtEvaluator()(model, feeds, fetch=[name]))
    except UnsupportedError:
        return None
    if not first.size or int(last.max()) - int(first.max()) != rows:
        return None
    return rows - int(first.max())


def _feeds(model: ir.Model, count: int) -> dict[str, Array]:
    """One row of `count` tokens of an encoder; the rest does not matter."""
    inputs = ports(model.graph.inputs)
    axis = next(port.shape[1] for port in inputs if port.name == TOKENS)
    feeds = {}
    for port in inputs:
        shape = [dim if isinstance(dim, int) else count if dim == axis else 1 for dim in port.shape]
        if port.name in {TOKENS, PADDING} and not isinstance(port.shape[1], int):
            shape[1] = count
        feeds[port.name] = np.zeros(shape, port.dtype)
    return feeds | {LENGTHS: np.zeros_like(feeds[LENGTHS])}
