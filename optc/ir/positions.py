"""Where a graph takes token positions from, found by dataflow and checked by numbers.

An export without a cache counts positions from 0: some `Range` over the sequence feeds rotary
tables, position embeddings or biases. With a cache, row b starts at its own offset. A value p is a
*source of positions* of a value v if p is [1|B, S], holds 0..S-1, and replacing it by
offset[b] + 0..S-1 turns v into exactly the rows offset[b].. of v for a longer sequence. The last
condition is tested by evaluating both.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.probe import Probe, ProbeFailure, ancestors, data_inputs

__all__ = ["PositionUse", "find_position_source", "forget_shapes_after", "position_uses"]

_NEW, _OFFSETS = 3, (4, 2)


@dataclasses.dataclass(frozen=True)
class PositionUse:
    """A value that depends on positions and meets the data.

    Attributes:
        value: The value, such as a table of cosines.
        axis: Its axis that runs over the sequence.
    """

    value: ir.Value
    axis: int


def position_uses(model: ir.Model, sequence: str) -> list[PositionUse]:
    """Values that depend on sizes only, run over the sequence, and are used by data nodes.

    Args:
        model: The model.
        sequence: Symbol of the number of tokens.
    """
    fixed = _fixed_values(model)
    uses: dict[ir.Value, PositionUse] = {}
    for node in model.graph:
        if node.outputs[0] in fixed:
            continue
        for value in node.inputs:
            if value is None or value not in fixed or value.producer() is None:
                continue
            axis = _sequence_axis(value, sequence)
            if axis is not None:
                uses.setdefault(value, PositionUse(value, axis))
    return list(uses.values())


def _fixed_values(model: ir.Model) -> set[ir.Value]:
    """Values that depend on sizes and constants only, not on the contents of any input."""
    fixed = set(model.graph.initializers.values())
    for node in model.graph:
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type in {"Shape", "Size"} or all(v in fixed for v in inputs):
            fixed |= set(node.outputs)
    return fixed


def forget_shapes_after(model: ir.Model, source: ir.Value) -> None:
    """Drop the recorded shapes of what is computed from `source` before it meets data.

    Tables of positions gain a batch axis when their source does; data values keep their shapes.
    """
    fixed = _fixed_values(model)
    reached: set[ir.Value | None] = {source}
    for node in model.graph:
        if node.outputs[0] not in fixed or node.op_type in {"Shape", "Size"}:
            continue
        if reached.intersection(node.inputs):
            reached |= set(node.outputs)
    for value in reached:
        if value is not None and value is not source:
            value.shape = None


def _sequence_axis(value: ir.Value, sequence: str) -> int | None:
    if value.shape is None:
        return None
    axes = [i for i, d in enumerate(value.shape) if _depends_on(d, sequence)]
    return axes[0] if len(axes) == 1 else None


def _depends_on(dim: int | ir.SymbolicDim, sequence: str) -> bool:
    return isinstance(dim, ir.SymbolicDim) and dim.value == sequence


def find_position_source(
    model: ir.Model, use: PositionUse, batch: str, sequence: str
) -> ir.Value | str | None:
    """The source of positions of one use.

    Args:
        model: The model.
        use: A value over the sequence.
        batch: Symbol of the batch.
        sequence: Symbol of the number of tokens.

    Returns:
        The source; None if the value is the same at every position; a sentence why not, otherwise.
    """
    total = max(_OFFSETS) + _NEW
    try:
        whole = Probe(model, {batch: 1, sequence: total}).run(use.value)
    except ProbeFailure as failure:
        return f"'{use.value.name}' runs over the sequence and cannot be evaluated: {failure}"
    if whole.shape[use.axis] != total:
        return f"'{use.value.name}' does not run over the sequence as its shape says"
    if (whole == np.take(whole, [0], use.axis)).all():
        return None
    probe = Probe(model, {batch: len(_OFFSETS), sequence: _NEW})
    for source in _counting_values(probe, use.value):
        if _follows(probe, use, source, whole):
            return source
    return (
        f"'{use.value.name}' depends on positions, and no value [1,S] that counts them explains it"
    )


def _counting_values(probe: Probe, value: ir.Value) -> list[ir.Value]:
    """Ancestors of shape [1|B, S] that hold 0..S-1, nearest first."""
    found = []
    for candidate in ancestors(value):
        shape = probe.shape_of(candidate)
        if candidate.producer() is None or data_inputs(candidate):
            continue
        if shape is None or len(shape) != 2 or shape[1] != _NEW:
            continue
        try:
            content = probe.run(candidate)
        except ProbeFailure:
            continue
        if content.shape == shape and (content == np.arange(_NEW)).all():
            found.append(candidate)
    return found


def _follows(probe: Probe, use: PositionUse, source: ir.Value, whole: Array) -> bool:
    rows = np.array(_OFFSETS)[:, None] + np.arange(_NEW)
    dtype = source.dtype.numpy() if source.dtype is not None else rows.dtype
    try:
        moved = probe.run(use.value, {source: rows.astype(dtype)})
    except ProbeFailure:
        return False
    if moved.shape[0] != len(_OFFSETS) or use.axis == 0:
        return False
    wanted = [np.take(whole, range(o, o + _NEW), use.axis)[0] for o in _OFFSETS]
    same = moved.shape == (len(_OFFSETS), *wanted[0].shape)
    return same and np.allclose(moved, np.stack(wanted), rtol=1e-5, atol=1e-6)
