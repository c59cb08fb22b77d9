"""Does anything but attention look at other tokens?

With a cache, a call sees the new tokens only. Attention gets the old ones back from the cache; any
other operation over the sequence would see a part of it and compute something else.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import constant
from optc.ir.flash_attention import DOMAIN
from optc.ir.probe import Probe, ProbeFailure, fixed_values
from optc.ir.probe_sizes import probe_sizes

__all__ = ["INDEXING", "mixing_nodes"]

INDEXING = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"}
"""Operators whose second operand says where data goes, or comes from."""

_NEIGHBOURS = {"Conv", "ConvTranspose", "RNN", "LSTM", "GRU", "Scan", "Loop", "If", "Einsum"}
_NEIGHBOURS |= {
    "AveragePool",
    "MaxPool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Attention",
    "InstanceNormalization",
    "GroupNormalization",
    "LRN",
    "DFT",
    "STFT",
    "Trilu",
    "Compress",
    "Unique",
    "NonZero",
}
_ALONG_AXIS = {"CumSum", "Softmax", "LogSoftmax", "ArgMax", "ArgMin", "TopK", "Concat"}
_ALONG_AXIS |= {"CumProd", "Hardmax", "LpNormalization"}
_FROM_AXIS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_LENGTHENING = {"Tile", "Resize", "ReverseSequence"}


def mixing_nodes(model: ir.Model, sequence: str) -> list[ir.Node]:
    """Nodes outside attention that combine data of several tokens.

    Args:
        model: The model.
        sequence: Symbol of the number of tokens.
    """
    fixed = fixed_values(model)
    found = []
    for node in model.graph:
        data = [v for v in node.inputs if v is not None and v not in fixed]
        over = [v for v in data if _axes(v, sequence)]
        if not over or node.domain == DOMAIN:
            continue
        if node.op_type == "Reshape" and _leaves_place(model, node, sequence):
            found.append(node)
            continue
        placed = node.op_type in INDEXING and node.inputs[1] in fixed
        if _carries_over(model, node, over, sequence) if placed else _mixes(node, over, sequence):
            found.append(node)
    return found


def _axes(value: ir.Value, sequence: str) -> list[int]:
    """Axes of a value that run over the sequence, alone or flattened with others."""
    if value.shape is None:
        return []
    symbols = [d.free_symbols() if isinstance(d, ir.SymbolicDim) else set() for d in value.shape]
    return [axis for axis, names in enumerate(symbols) if sequence in names]


def _mixes(node: ir.Node, over: list[ir.Value], sequence: str) -> bool:
    op, value = node.op_type, over[0]
    if value.shape is None:
        return False
    axes, rank = _axes(value, sequence), len(value.shape)
    if op in _NEIGHBOURS:
        return True
    if op in {"MatMul", "Gemm"}:
        return _contracts(node, sequence)
    if op.startswith("Reduce"):
        reduced = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return reduced is None or any(int(a) % rank in axes for a in reduced.reshape(-1))
    if op in _ALONG_AXIS:
        return _axis(node, rank) in axes
    if op in _FROM_AXIS:
        return max(axes) >= _axis(node, rank)
    if op == "MeanVarianceNormalization":
        default = ir.AttrInt64s("axes", [0, 2, 3])
        chosen = node.attributes.get("axes", default).as_ints()
        return any(axis % rank in axes for axis in chosen)
    if op == "Pad":
        return _pads(node, axes, rank)
    if op in _LENGTHENING:
        return not set(map(str, node.outputs[0].shape or ())) >= {str(value.shape[a]) for a in axes}
    return op == "Slice" and _is_shift(node, sequence)


def _carries_over(model: ir.Model, node: ir.Node, over: list[ir.Value], sequence: str) -> bool:
    """Whether data is put in the place of another token, found by changing one token's data."""
    probe, output = Probe(model, probe_sizes(model)), node.outputs[0]
    after = _alone(output, sequence)
    if after is None:
        return True
    try:
        given = {v: _drawn(probe, v) for v in over}
        base = probe.run(output, given)
        for value in over:
            axis = _alone(value, sequence)
            if axis is None:
                return True
            for token in range(given[value].shape[axis]):
                changed = given[value].copy()
                row = np.moveaxis(changed, axis, 0)[token, ...]
                row[...] = ~row if row.dtype == np.bool_ else row + 1
                moved = np.moveaxis(base != probe.run(output, given | {value: changed}), after, 0)
                if np.delete(moved, token, 0).any():
                    return True
    except ProbeFailure:
        return True
    return False


def _leaves_place(model: ir.Model, node: ir.Node, sequence: str) -> bool:
    """Whether a reshape, seen from its result's own axis of tokens, joins parts of several."""
    probe, value, made = Probe(model, probe_sizes(model)), node.inputs[0], node.outputs[0]
    if value is None:
        return False
    before, after = _alone(value, sequence), _alone(made, sequence)
    shapes = probe.shape_of(value), probe.shape_of(made)
    if before is None or after is None or shapes[0] is None or shapes[1] is None:
        return False
    count = shapes[0][before]
    tokens = np.moveaxis(np.zeros(shapes[0], np.int64), before, -1) + np.arange(count)
    moved = np.moveaxis(tokens, -1, before).reshape(shapes[1])
    return bool((np.moveaxis(moved, after, -1) != np.arange(count)).any())


def _alone(value: ir.Value, sequence: str) -> int | None:
    """The one axis that is the sequence, and not a part of one."""
    axes = _axes(value, sequence)
    dim = value.shape[axes[0]] if value.shape is not None and len(axes) == 1 else None
    return axes[0] if isinstance(dim, ir.SymbolicDim) and dim.value == sequence else None


def _drawn(probe: Probe, value: ir.Value) -> Array:
    shape = probe.shape_of(value)
    if shape is None:
        raise ProbeFailure(f"the shape of '{value.name}' is not known")
    dtype = value.dtype.numpy() if value.dtype is not None else np.float32
    return np.random.default_rng(0).integers(0, 99, shape).astype(dtype)


def _axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "CumSum":
        axis = constant(node.inputs[1])
        return int(axis.reshape(())) % rank if axis is not None else -1
    default = {"ArgMax": 0, "ArgMin": 0}.get(node.op_type, -1)
    return int(node.attributes.get_int("axis", default)) % rank


def _pads(node: ir.Node, axes: list[int], rank: int) -> bool:
    """Whether tokens are added at either end, or dropped by a negative amount."""
    amounts = constant(node.inputs[1])
    if amounts is None or len(node.inputs) > 3 or amounts.size != 2 * rank:
        return True
    ends = amounts.reshape(2, rank)
    return any(ends[0, axis] or ends[1, axis] for axis in axes)


def _contracts(node: ir.Node, sequence: str) -> bool:
    """Whether the inner dimension of a product is the sequence."""
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        return False
    rank = len(left.shape or ())
    inner = 0 if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1 else rank - 1
    if inner in _axes(left, sequence):
        return True
    outer = len(right.shape or ()) - 2
    return node.op_type == "MatMul" and outer in _axes(right, sequence)


def _is_shift(node: ir.Node, sequence: str) -> bool:
    """A slice that drops some tokens, unless it keeps a call's last one."""
    value, made = node.inputs[0], node.outputs[0]
    if value is None or value.shape is None or made.shape is None:
        return False
    if len(made.shape) != len(value.shape):
        return True
    changed = [a for a in _axes(value, sequence) if value.shape[a] != made.shape[a]]
    last = constant(node.inputs[1])
    keeps_last = last is not None and last.reshape(-1).tolist() == [-1]
    return any(made.shape[a] != 1 or not keeps_last for a in changed)
