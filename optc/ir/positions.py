"""Where a graph takes token positions from, found by dataflow and checked by numbers.

An export without a cache counts positions from 0: some `Range` over the sequence feeds rotary
tables, position embeddings or biases. With a cache, row b starts at its own offset. A value p is a
*source of positions* of a value v if p is [1|B, .., S, ..], holds 0..S-1, and replacing it by
offset[b] + 0..S-1 turns v into exactly the rows offset[b].. of v for a longer sequence. The last
condition is tested by evaluating both.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.probe import Probe, ProbeFailure, ancestors, data_inputs, fixed_values

__all__ = [
    "PositionSource",
    "PositionUse",
    "find_position_source",
    "forget_shapes_after",
    "position_uses",
]

_NEW, _LATER, _OFFSETS = 3, 7, (4, 2)
_OTHER = 11

# operands that say how many, never which: (op, first such input)
_SIZE_OPERANDS = {
    "Reshape": 1,
    "Expand": 1,
    "Slice": 1,
    "Unsqueeze": 1,
    "Squeeze": 1,
    "Tile": 1,
    "Pad": 1,
    "Split": 1,
    "TopK": 1,
}


@dataclasses.dataclass(frozen=True)
class PositionUse:
    """A value that runs over the sequence, depends on sizes only, and meets the data.

    Attributes:
        value: The value, such as a table of cosines.
        axis: Its axis that runs over the sequence.
    """

    value: ir.Value
    axis: int


@dataclasses.dataclass(frozen=True)
class PositionSource:
    """A value [1|B, .., S, ..] of this rank that counts positions."""

    value: ir.Value
    rank: int


def position_uses(model: ir.Model, batch: str, sequence: str) -> list[PositionUse | str]:
    """Values that depend on sizes only, run over the sequence, and are used by data nodes.

    Which values run over the sequence is found by evaluating each at two lengths.

    Args:
        model: The model.
        batch: Symbol of the batch.
        sequence: Symbol of the number of tokens.

    Returns:
        The uses; a sentence in place of each value that cannot be evaluated.
    """
    probes = [_probe(model, {batch: 2, sequence: count}) for count in (_NEW, _LATER)]
    found: list[PositionUse | str] = []
    for value in _met_by_data(model):
        try:
            contents = [probe.run(value) for probe in probes]
        except ProbeFailure as failure:
            found.append(f"'{value.name}' may depend on positions and cannot be read: {failure}")
            continue
        shapes = [content.shape for content in contents]
        axes = [i for i, (a, b) in enumerate(zip(*shapes, strict=False)) if a != b]
        if not axes and not np.array_equal(contents[0], contents[1]):
            found.append(f"'{value.name}' depends on the number of tokens, which a cache hides")
        if len(axes) > 1:
            found.append(f"'{value.name}' runs over the sequence twice, like a mask")
        elif axes:
            found.append(PositionUse(value, axes[0]))
    return found


def _probe(model: ir.Model, sizes: dict[str, int]) -> Probe:
    """Inputs beside the tokens have as many rows, and lengths of their own."""
    rows, others = next(iter(sizes.values())), dict[str, int]()
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim):
                others |= dict.fromkeys(dim.free_symbols(), _OTHER if axis else rows)
    return Probe(model, others | sizes)


def _met_by_data(model: ir.Model) -> list[ir.Value]:
    """Computed values that depend on sizes only and are operands of nodes that see data."""
    fixed = fixed_values(model)
    met: dict[ir.Value, None] = {}
    for node in model.graph:
        if node.outputs[0] in fixed:
            continue
        stop = _SIZE_OPERANDS.get(node.op_type, len(node.inputs))
        for value in node.inputs[:stop]:
            if value is not None and fixed.get(value):
                met.setdefault(value)
    return list(met)


def forget_shapes_after(model: ir.Model, source: ir.Value) -> None:
    """Drop the recorded shapes of what is computed from `source` before it meets data.

    Tables of positions gain a batch axis when their source does; data values keep their shapes.
    """
    fixed = fixed_values(model)
    reached: set[ir.Value | None] = {source}
    for node in model.graph:
        if node.outputs[0] not in fixed or node.op_type in {"Shape", "Size"}:
            continue
        if reached.intersection(node.inputs):
            reached |= set(node.outputs)
    for value in reached:
        if value is not None and value is not source:
            value.shape = None


def find_position_source(
    model: ir.Model, use: PositionUse, batch: str, sequence: str
) -> PositionSource | str | None:
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
        whole = _probe(model, {batch: 1, sequence: total}).run(use.value)
    except ProbeFailure as failure:
        return f"'{use.value.name}' runs over the sequence and cannot be evaluated: {failure}"
    if whole.shape[use.axis] != total:
        return f"'{use.value.name}' does not run over the sequence as its shape says"
    if (whole == np.take(whole, [0], use.axis)).all():
        return None
    probe = _probe(model, {batch: len(_OFFSETS), sequence: _NEW})
    for source in _counting_values(probe, use.value):
        if _follows(probe, use, source.value, whole):
            return source
    return f"'{use.value.name}' depends on positions, and no value [1,S] that counts them gives it"


def _counting_values(probe: Probe, value: ir.Value) -> list[PositionSource]:
    """Ancestors [1|B, 1.., S, 1..] that hold 0..S-1 along one axis, in graph order."""
    reached = ancestors(value)
    found = []
    for node in probe.model.graph:
        candidate = node.outputs[0]
        if candidate not in reached or data_inputs(candidate):
            continue
        try:
            content = probe.run(candidate)
        except ProbeFailure:
            continue
        if _counts(content):
            found.append(PositionSource(candidate, content.ndim))
    return found


def _counts(content: Array) -> bool:
    if content.ndim < 2 or content.shape[0] not in (1, len(_OFFSETS)):
        return False
    if sorted(content.shape[1:]) != [1] * (content.ndim - 2) + [_NEW]:
        return False
    return bool((content.reshape(-1, _NEW) == np.arange(_NEW)).all())


def _follows(probe: Probe, use: PositionUse, source: ir.Value, whole: Array) -> bool:
    try:
        counted = probe.run(source)
        offsets = np.reshape(_OFFSETS, (-1, *[1] * (counted.ndim - 1)))
        moved = probe.run(use.value, {source: counted + offsets.astype(counted.dtype)})
    except ProbeFailure:
        return False
    if moved.shape[0] != len(_OFFSETS) or use.axis == 0:
        return False
    wanted = [np.take(whole, range(o, o + _NEW), use.axis)[0] for o in _OFFSETS]
    same = moved.shape == (len(_OFFSETS), *wanted[0].shape)
    return same and np.allclose(moved, np.stack(wanted), rtol=1e-5, atol=1e-6)
