"""Values over the sequence that depend on sizes only and meet the data: tables of positions.

Which values run over the sequence is found by evaluating each at two lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.flash_attention import DOMAIN, INPUTS
from optc.ir.mixing import INDEXING
from optc.ir.probe import Probe, ProbeFailure, fixed_values
from optc.ir.recount import TokenAxes

__all__ = ["SIZE_OPERANDS", "PositionUse", "data_uses", "growing_axes", "position_uses"]

_COUNTS = (3, 7)
# operands that say how many, never which: (op, first such input)
SIZE_OPERANDS = {
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
    """A value that depends on sizes only and meets the data.

    Attributes:
        value: The value, such as a table of cosines.
        axis: Its axis that runs over the sequence; None if it was the same at the numbers of tokens
            that were tried.
    """

    value: ir.Value
    axis: int | None


def position_uses(
    model: ir.Model, axes: TokenAxes, beside: Container[ir.Node] = ()
) -> list[PositionUse | str]:
    """Values that depend on sizes only and are used by data nodes.

    Masks of attention are not among them: see `optc.ir.position_masks`.

    Args:
        model: The model.
        axes: Axes of the token input.
        beside: Nodes that are not about the tokens.

    Returns:
        The uses; a sentence in place of each value that cannot be evaluated.
    """
    probes = [Probe(model, axes.sizes(count, batch=2)) for count in _COUNTS]
    met = _met_by_data(model, beside)
    found: list[PositionUse | str] = [
        PositionUse(value, None)
        for value in _met_by_data(model, beside, as_size=True)
        if value not in met and _is_settled(value, probes)
    ]
    for value in met:
        try:
            contents = [probe.run(value) for probe in probes]
        except ProbeFailure as failure:
            found.append(f"'{value.name}' may depend on positions and cannot be read: {failure}")
            continue
        grown = growing_axes(*contents)
        if not grown and not np.array_equal(contents[0], contents[1]):
            found.append(f"'{value.name}' depends on the number of tokens, which a cache hides")
        elif not grown:
            found.append(PositionUse(value, None))
        elif len(grown) > 1:
            found.append(
                f"'{value.name}' runs over the sequence twice, and is no mask of attention"
            )
        else:
            found.append(PositionUse(value, grown[0]))
    return found


def growing_axes(short: Array, long: Array) -> list[int]:
    """Axes whose sizes differ."""
    return [i for i, (a, b) in enumerate(zip(short.shape, long.shape, strict=False)) if a != b]


def data_uses(model: ir.Model, value: ir.Value) -> list[tuple[ir.Node, int]]:
    """The nodes that see data and use such a value, and as which operand."""
    fixed = fixed_values(model)
    return [(node, index) for node, index in value.uses() if _meets(node, index, fixed, model)]


def _is_settled(value: ir.Value, probes: list[Probe]) -> bool:
    """Whether it is the same at a few numbers of tokens; what cannot be evaluated is not told."""
    try:
        short, long = (probe.run(value) for probe in probes)
    except ProbeFailure:
        return False
    return np.array_equal(short, long)


def _met_by_data(
    model: ir.Model, beside: Container[ir.Node], *, as_size: bool = False
) -> list[ir.Value]:
    """Computed values that depend on sizes only and are operands of nodes that see data.

    With `as_size`, those that say how many, or which.
    """
    fixed = fixed_values(model)
    met: dict[ir.Value, None] = {}
    for node in model.graph:
        for index, value in enumerate(node.inputs if node not in beside else ()):
            if value is None or not fixed.get(value) or not _sees_data(node, fixed, model):
                continue
            if as_size != _meets(node, index, fixed, model):
                met.setdefault(value)
    return list(met)


def _sees_data(node: ir.Node, fixed: dict[ir.Value | None, bool], model: ir.Model) -> bool:
    return node.graph is model.graph and node.outputs[0] not in fixed


def _meets(node: ir.Node, index: int, fixed: dict[ir.Value | None, bool], model: ir.Model) -> bool:
    if not _sees_data(node, fixed, model):
        return False
    if node.domain == DOMAIN:
        return index != INPUTS.index("mask")
    if node.op_type in INDEXING and index == 1:  # says which token of this call, see optc.ir.mixing
        return False
    return index < SIZE_OPERANDS.get(node.op_type, len(node.inputs))
