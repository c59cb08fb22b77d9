"""Which axes of a value run over the tokens, and which nodes leave each token to itself.

The tail of a decoder (`optc.rewrite.last_tokens`) holds values [B,S,...], or [B*S,...] with tokens
laid flat. A node of it works behind these axes, and keeps them where they are.
"""

from __future__ import annotations

import itertools

import onnx_ir as ir

from optc.ir.constants import constant
from optc.ir.elementwise import ELEMENTWISE

__all__ = ["TailAxes"]

_FIRST_ONLY = {"MatMul", "Gemm", "QuantizeLinear", "DequantizeLinear"}
_FROM_AXIS = {"LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Concat", "Split"}
_SAMPLES = ((5, 7), (11, 3))  # sizes at which an axis B*S is told from others
_TO_THE_END = (1 << 31) - 1  # what exporters write for an end, or more


class TailAxes:
    """What axes values have, by the symbols of batch and sequence."""

    def __init__(self, batch: str, sequence: str):
        self._batch = batch
        self._sequence = sequence

    def lead(self, value: ir.Value) -> int:
        """2 for [B,S,...], 1 for [B*S,...], the rest of known sizes; 0 for anything else."""
        shape = value.shape
        if shape is None or not len(shape):
            return 0
        names = [d.value if isinstance(d, ir.SymbolicDim) else d for d in shape]
        count = 2 if names[:2] == [self._batch, self._sequence] else 1
        if count == 1 and not self._is_flat(shape[0]):
            return 0
        return count if all(isinstance(size, int) for size in names[count:]) else 0

    def _is_flat(self, dim: int | ir.SymbolicDim) -> bool:
        if isinstance(dim, int):
            return False
        found = (
            ir.Shape([dim]).evaluate({self._batch: b, self._sequence: s})[0] for b, s in _SAMPLES
        )
        return list(found) == [b * s for b, s in _SAMPLES]

    def has_tokens(self, value: ir.Value | None) -> bool:
        """Whether a value runs over the sequence; one of unknown shape may."""
        if value is None or value.const_value is not None:
            return False
        if value.shape is None:
            return True
        symbols = (d.free_symbols() for d in value.shape if isinstance(d, ir.SymbolicDim))
        return any(self._sequence in found for found in symbols)

    def entries(self, node: ir.Node, tail: set[ir.Node]) -> list[ir.Value]:
        """Values over the sequence that a node of the tail reads and no other gives."""
        read = (v for v in node.inputs if v is not None and self.has_tokens(v))
        return [value for value in read if value.producer() not in tail]

    def treats_alone(self, node: ir.Node) -> bool:
        """Whether each token's result follows from that token of the inputs alone."""
        over = [v for v in node.inputs if v is not None and self.has_tokens(v)]
        leads = {self.lead(value) for value in (*over, *node.outputs)}
        if node.domain or not over or 0 in leads:
            return False
        op, inputs = node.op_type, list(node.inputs)
        if op == "Reshape":
            return over == inputs[:1] and self._rest(over[0]) == self._rest(node.outputs[0])
        if len(leads) > 1:
            return False
        if op in ELEMENTWISE:
            return len({len(value.shape or ()) for value in (*over, *node.outputs)}) == 1
        if op in _FIRST_ONLY:
            inner = len(over[0].shape or ()) - 1
            turned = node.attributes.get_int("transA", 0)
            return over == inputs[:1] and inner >= leads.pop() and not turned
        return self._works_inside(node, over, leads.pop())

    def _works_inside(self, node: ir.Node, over: list[ir.Value], lead: int) -> bool:
        """Whether a node that works along axes does so behind those of the tokens."""
        rank = len(over[0].shape or ())
        if node.op_type in _FROM_AXIS:
            every = [v for v in node.inputs if v is not None] if node.op_type == "Concat" else over
            default = 0 if node.op_type == "Split" else -1
            axis = node.attributes.get_int("axis", default) % rank
            return axis >= lead and over == every
        if node.op_type.startswith("Reduce"):
            axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if axes is None or not axes.size:
                return False
            return all(int(a) % rank >= lead for a in axes.reshape(-1))
        if node.op_type == "Slice":
            return over == list(node.inputs[:1]) and _cuts_behind(node, rank, lead)
        return node.op_type == "Einsum" and _sums_behind(node, over, lead)

    def _rest(self, value: ir.Value) -> list[int | ir.SymbolicDim]:
        return list(value.shape or ())[self.lead(value) :]


def _cuts_behind(node: ir.Node, rank: int, lead: int) -> bool:
    """Whether a `Slice` takes a part of axes behind the first `lead` only, and all of these."""
    starts, ends, axes, steps = (
        None if value is None else constant(value)
        for value, _ in itertools.zip_longest(node.inputs[1:], range(4))
    )
    if starts is None or ends is None or (axes is None and len(node.inputs) > 3):
        return False
    cut = range(starts.size) if axes is None else [int(axis) % rank for axis in axes.reshape(-1)]
    if steps is None and len(node.inputs) > 4:
        return False
    by = [1] * len(cut) if steps is None else steps.reshape(-1).tolist()
    parts = zip(cut, starts.reshape(-1), ends.reshape(-1), by, strict=True)
    return all(
        axis >= lead or (start == 0 and end >= _TO_THE_END and step == 1)
        for axis, start, end, step in parts
    )


def _sums_behind(node: ir.Node, over: list[ir.Value], lead: int) -> bool:
    """Whether an `Einsum` keeps the first `lead` axes, which no operand without tokens has."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    if not arrow or "." in equation:
        return False
    kept = result[:lead]
    if len(kept) < lead or any((result + kept).count(letter) != 2 for letter in kept):
        return False
    for term, value in zip(left.split(","), node.inputs, strict=True):
        behind = term.removeprefix(kept) if value in over else term
        if (value in over and not term.startswith(kept)) or set(kept) & set(behind):
            return False
    return True
