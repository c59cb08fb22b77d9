"""Values over the sequence that depend on sizes only and meet the data: tables of positions.

Which values run over the sequence is found by evaluating each at two lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.flash_attention import DOMAIN, INPUTS
from optc.ir.probe import Probe, ProbeFailure, fixed_values
from optc.ir.recount import TokenAxes

__all__ = [
    "INDEXING",
    "SIZE_OPERANDS",
    "PositionUse",
    "data_uses",
    "growing_axes",
    "position_uses",
    "size_operands",
]

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
INDEXING = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"}
"""Operators whose second operand says where data goes, or comes from."""


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
    found: list[PositionUse | str] = []
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


def size_operands(
    model: ir.Model, beside: Container[ir.Node] = ()
) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Where values that depend on sizes only say how many, or which tokens: node, operand, value.

    Args:
        model: The model.
        beside: Nodes that are not about the tokens.
    """
    fixed = fixed_values(model)
    for node, index, value in _operands(model, beside, fixed):
        if node.domain != DOMAIN and not _meets(node, index, fixed, model):
            yield node, index, value


def _met_by_data(model: ir.Model, beside: Container[ir.Node]) -> list[ir.Value]:
    """Computed values that depend on sizes only and are operands of nodes that see data."""
    fixed = fixed_values(model)
    met = _operands(model, beside, fixed)
    return list(dict.fromkeys(v for node, i, v in met if _meets(node, i, fixed, model)))


def _operands(
    model: ir.Model, beside: Container[ir.Node], fixed: dict[ir.Value | None, bool]
) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """What depends on sizes only, and which node that sees data has it as which operand."""
    for node in model.graph:
        if node in beside or not _sees_data(node, fixed, model):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and fixed.get(value):
                yield node, index, value


def _sees_data(node: ir.Node, fixed: dict[ir.Value | None, bool], model: ir.Model) -> bool:
    return node.graph is model.graph and node.outputs[0] not in fixed


def _meets(node: ir.Node, index: int, fixed: dict[ir.Value | None, bool], model: ir.Model) -> bool:
    if not _sees_data(node, fixed, model):
        return False
    if node.domain == DOMAIN:
        return index != INPUTS.index("mask")
    if node.op_type in INDEXING and index == 1:
        return not _chooses_tokens(node)
    return index < SIZE_OPERANDS.get(node.op_type, len(node.inputs))


def _chooses_tokens(node: ir.Node) -> bool:
    """Whether an index may say which token of this call, not only which channel of each."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or node.op_type in {"GatherND", "ScatterND"}:
        return True
    return not isinstance(shape[node.attributes.get_int("axis", 0)], int)
