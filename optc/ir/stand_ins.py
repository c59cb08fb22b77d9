"""Inputs that a cache makes superfluous, and what takes their place.

* `position_ids` [B,S]: positions follow from the cache, so an export without one counts from 0.
* `attention_mask` [B,S] that only hides padding: rows are padded on the right and have lengths of
  their own, so causality hides their padding. All ones take its place, if that changes nothing that
  a token sees: whatever depends on the mask and meets other data is evaluated with rows padded on
  the right and without padding, and compared at the tokens that are there.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.draft import Draft
from optc.ir.flash_attention import DOMAIN, INPUTS
from optc.ir.mask_rows import same_rows, seen_keys
from optc.ir.position_uses import SIZE_OPERANDS, growing_axes
from optc.ir.probe import Probe, ProbeFailure, data_inputs
from optc.ir.recount import TokenAxes

__all__ = ["StandIns", "padding_problem"]

_ROWS = ((5, 8), (2, 3), (11, 1))  # tokens of two rows
_MASK = INPUTS.index("mask")


@dataclasses.dataclass
class _Replaced:
    value: ir.Value
    at: int
    uses: list[tuple[ir.Node, int]]


class StandIns:
    """Puts constants in the place of inputs; can be undone.

    Args:
        model: Changed by the methods.
        tokens: The token input [B,S].
    """

    def __init__(self, model: ir.Model, tokens: ir.Value):
        self._model = model
        self._tokens = tokens
        self._replaced: list[_Replaced] = []

    def ones(self, value: ir.Value) -> None:
        """All ones [B,S] in the place of an input."""
        draft = Draft(self._model, "all_seen")
        dtype = value.dtype or ir.DataType.INT64
        one = draft.node("Constant", [], dtype, value=ir.tensor([1], dtype=dtype))
        self._replace(value, draft.node("Expand", [one, self._shape(draft)], dtype), draft)

    def positions(self, value: ir.Value) -> None:
        """0..S-1 in every row of [B,S] in the place of an input."""
        draft = Draft(self._model, "counted")
        zero, one = (draft.node("Constant", [], value_int=i) for i in (0, 1))
        count = draft.node("Squeeze", [draft.size(self._tokens, 1)])
        row = draft.node("Range", [zero, count, one])
        if value.dtype not in (None, ir.DataType.INT64):
            row = draft.node("Cast", [row], value.dtype, to=int(value.dtype))
        self._replace(value, draft.node("Expand", [row, self._shape(draft)], value.dtype), draft)

    def undo(self) -> None:
        """Give the inputs back."""
        for replaced in reversed(self._replaced):
            for node, index in replaced.uses:
                node.replace_input_with(index, replaced.value)
            self._model.graph.inputs.insert(replaced.at, replaced.value)
        self._replaced = []

    def _shape(self, draft: Draft) -> ir.Value:
        return draft.node("Shape", [self._tokens], shape=ir.Shape([2]))

    def _replace(self, value: ir.Value, made: ir.Value, draft: Draft) -> None:
        made.shape = self._tokens.shape
        inputs, uses = self._model.graph.inputs, [(use.node, use.idx) for use in value.uses()]
        self._replaced.append(_Replaced(value, inputs.index(value), uses))
        draft.keep()
        for node, index in uses:
            node.replace_input_with(index, made)
        inputs.remove(value)


def padding_problem(model: ir.Model, padding: ir.Value, axes: TokenAxes) -> str:
    """Why an input [B,T] does more than to hide padding on the right; empty if it does not."""
    for value, is_mask in _met_by_data(model, padding):
        try:
            if not all(_is_same(model, padding, value, axes, rows, is_mask) for rows in _ROWS):
                return f"'{padding.name}' changes '{value.name}' for tokens that are no padding"
        except ProbeFailure as failure:
            return f"what '{padding.name}' does to '{value.name}' cannot be evaluated: {failure}"
    return ""


def _met_by_data(model: ir.Model, padding: ir.Value) -> dict[tuple[ir.Value, bool], None]:
    """Values that depend on the input only, where they meet others; whether as attention masks."""
    met: dict[tuple[ir.Value, bool], None] = {}
    for node in model.graph:
        others = set().union(*(data_inputs(v) for v in node.inputs if v is not None)) - {padding}
        stop = SIZE_OPERANDS.get(node.op_type, len(node.inputs))
        for index, value in enumerate(node.inputs):
            depends = value is not None and data_inputs(value) == {padding}
            if value is not None and depends and others and index < stop:
                met.setdefault((value, node.domain == DOMAIN and index == _MASK))
    return met


def _is_same(
    model: ir.Model,
    padding: ir.Value,
    value: ir.Value,
    axes: TokenAxes,
    rows: tuple[int, ...],
    is_mask: bool,
) -> bool:
    count = max(rows)
    seen = np.arange(count) < np.array(rows)[:, None]
    got = _run(model, padding, value, axes, seen)
    whole = _run(model, padding, value, axes, np.ones_like(seen))
    if is_mask:
        return _same_mask(got, whole, seen)
    longer = _run(model, padding, value, axes, np.ones((len(rows), count + 1)))
    grown = growing_axes(whole, longer)
    if len(grown) != 1:
        return np.array_equal(got, whole)
    return _same_tokens(got, whole, seen, grown[0])


def _same_tokens(got: Array, whole: Array, seen: Array, axis: int) -> bool:
    """[B, .., S, ..] or [1, .., S, ..] or flat [B*S, ..], compared at the tokens that are there."""
    if got.shape[axis] == seen.size and got.shape[axis] != seen.shape[1]:
        kept = seen.reshape(-1)
        return np.array_equal(np.compress(kept, got, axis), np.compress(kept, whole, axis))
    batch = np.broadcast_to if got.shape[0] in (1, len(seen)) and axis else None
    if batch is None:
        return np.array_equal(got, whole)
    wide = (len(seen), *got.shape[1:])
    pairs = zip(batch(got, wide), batch(whole, wide), seen, strict=True)
    return all(
        np.array_equal(np.compress(kept, a, axis - 1), np.compress(kept, b, axis - 1))
        for a, b, kept in pairs
    )


def _same_mask(got: Array, whole: Array, seen: Array) -> bool:
    """[B|1,H|1,S|1,S], compared for the queries that are there and the keys they see."""
    count = seen.shape[1]
    causal = seen_keys(np.arange(count), count)
    try:
        shape = np.broadcast_shapes(got.shape, whole.shape, (len(seen), 1, count, count))
    except ValueError:
        return False
    wide = [np.broadcast_to(x, shape) for x in (got, whole)]
    pairs = zip(*wide, seen, strict=True)
    return all(
        bool(same_rows(a, b, np.broadcast_to(causal & kept[:, None], causal.shape)))
        for a, b, kept in pairs
    )


def _run(
    model: ir.Model, padding: ir.Value, value: ir.Value, axes: TokenAxes, seen: Array
) -> Array:
    dtype = padding.dtype.numpy() if padding.dtype is not None else np.int64
    probe = Probe(model, axes.sizes(seen.shape[1], batch=len(seen)))
    return probe.run(value, {padding: seen.astype(dtype)})
