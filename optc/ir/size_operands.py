"""What says how many there are, or which tokens, must say so for any number of tokens.

Targets of `Reshape`, bounds of `Slice`, the k of `TopK` follow the sizes of a call, as they should:
an entry may be a constant, or a constant times the number of rows, of tokens, or of both. An index
along an axis of tokens has to take each in its place. Anything else, such as min(S, 5) channels, is
another with a cache, which shows a graph few tokens at a time. It is evaluated at the counts at
which it may change its mind, see `optc.ir.steady`.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import constant
from optc.ir.position_uses import INDEXING, size_operands
from optc.ir.probe import Probe, ProbeFailure
from optc.ir.size_counts import FEW_ELEMENTS
from optc.ir.steady import QUICK, Steady

__all__ = ["SizeOperands"]

_BOUNDS = (1, 2)
_NOTHING = np.empty(0, np.int64)
_FOLLOWING = {"Reshape", "Expand", "Tile", "Split"}
"""Operators that follow sizes; where their results hold tokens is looked at in `optc.ir.mixing`."""


class SizeOperands:
    """Looks at the operands of one model; equal ones are evaluated once.

    Args:
        steady: Tells at which counts to look.
    """

    def __init__(self, steady: Steady):
        self._steady = steady
        self._keys: dict[ir.Value, str] = {}
        self._problems: dict[tuple[object, ...], str] = {}

    def problems(self, beside: Container[ir.Node] = ()) -> list[str]:
        """What is not the same for any number of tokens, in words.

        Args:
            beside: Nodes that are not about the tokens.
        """
        found: dict[str, None] = {}
        for node, index, value in size_operands(self._steady.model, beside):
            problem = self._problem(node, index, value)
            if problem:
                found.setdefault(problem)
        return list(found)

    def _problem(self, node: ir.Node, index: int, value: ir.Value) -> str:
        if node.op_type in INDEXING:
            data = node.inputs[0]
            shape = str(data.shape) if data is not None else ""
            axis = node.attributes.get_int("axis", 0)
            key: tuple[object, ...] = (node.op_type, axis, shape, self._key(value))
        else:
            grows = _may_grow(node, index)
            key = (grows, self._key(value))
        if key not in self._problems:
            self._problems[key] = (
                self._index_problem(node, value)
                if node.op_type in INDEXING
                else self._entry_problem(value, np.array(grows))
            )
        return self._problems[key]

    def _entry_problem(self, value: ir.Value, grows: Array) -> str:
        """Why entries are neither constant nor, where they may be, a count."""
        base = self._content(value, 1, 1)
        if base is None:
            return f"'{value.name}' says how many, and cannot be evaluated"
        entries = base.reshape(-1)
        fits = np.ones((4, entries.size), np.bool_)
        fits[1:] &= grows.reshape(-1) if grows.size in (1, entries.size) else False
        before = 1
        for tokens, batch in self._sizes(value):
            content = self._content(value, tokens, batch)
            if content is None:
                continue
            if content.shape != base.shape:
                return self._steady.text(value, before, tokens)
            counts = np.array([[1], [tokens], [batch], [tokens * batch]])
            fits &= content.reshape(-1) == entries * counts
            if not fits.any(0).all():
                return self._text(value, before, tokens, batch)
            before = tokens
        return ""

    def _text(self, value: ir.Value, before: int, tokens: int, batch: int) -> str:
        if batch > 1:
            return f"'{value.name}' depends on how many rows there are"
        return self._steady.text(value, before, tokens)

    def _index_problem(self, node: ir.Node, value: ir.Value) -> str:
        """Why an index does not take each token in its place."""
        data = node.inputs[0]
        others: Array | None = None
        for tokens, batch in self._sizes(value):
            probe = Probe(self._steady.model, self._steady.axes.sizes(tokens, batch))
            shape = probe.shape_of(data) if data is not None else None
            content = self._content(value, tokens, batch)
            if shape is None or content is None:
                return f"which tokens '{value.name}' chooses cannot be told"
            beside = _in_place(node, content, shape)
            others = beside if others is None else others
            if beside is None or others is None or not np.array_equal(beside, others):
                return (
                    f"'{value.name}' chooses tokens, and not each in its place where there "
                    f"are {tokens} in {batch} row(s)"
                )
        return ""

    def _sizes(self, value: ir.Value) -> list[tuple[int, int]]:
        """Numbers of tokens and of rows."""
        alone = [(tokens, 1) for tokens in self._steady.counts(value, QUICK)]
        return alone + self._steady.batches(value)

    def _content(self, value: ir.Value, tokens: int, batch: int) -> Array | None:
        try:
            return Probe(self._steady.model, self._steady.axes.sizes(tokens, batch)).run(value)
        except ProbeFailure:
            return None

    def _key(self, value: ir.Value) -> str:
        """The same for values that are computed in the same way."""
        if value not in self._keys:
            self._keys[value] = self._write(value)
        return self._keys[value]

    def _write(self, value: ir.Value) -> str:
        node, content = value.producer(), constant(value)
        if content is not None and content.size <= FEW_ELEMENTS:
            return f"{content.dtype}{content.tolist()}"
        if node is None:
            return str(value.name)
        if node.op_type in {"Shape", "Size"}:
            measured = node.inputs[0]
            shape = measured.shape if measured is not None else None
            inputs = [str(measured if shape is None else shape)]
        else:
            inputs = ["" if v is None else self._key(v) for v in node.inputs]
        attributes = sorted(f"{name}={_text(a)}" for name, a in node.attributes.items())
        return f"{node.op_type}({','.join([*inputs, *attributes])})[{node.outputs.index(value)}]"


def _text(attribute: ir.Attr) -> str:
    return str(
        attribute.value.numpy().tolist()
        if attribute.type == ir.AttributeType.TENSOR
        else attribute.value
    )


def _may_grow(node: ir.Node, index: int) -> tuple[bool, ...]:
    """Which entries of an operand may follow sizes; one answer for all, or one for each."""
    if node.op_type != "Slice" or index not in _BOUNDS:
        return (node.op_type in _FOLLOWING,)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else np.arange(len(shape or ()))
    if shape is None or axes is None:
        return (False,)
    return tuple(not isinstance(shape[int(axis)], int) for axis in axes.reshape(-1))


def _in_place(node: ir.Node, index: Array, shape: tuple[int, ...]) -> Array | None:
    """What an index says of each token besides its place; None if it does not take all in order."""
    if node.op_type in {"GatherND", "ScatterND"}:
        return _coordinates(node, index, shape)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    whole = index.reshape(-1) if node.op_type == "Gather" else index
    along = 0 if node.op_type == "Gather" else axis
    return _NOTHING if _counts_along(whole, along, shape[axis]) else None


def _coordinates(node: ir.Node, index: Array, shape: tuple[int, ...]) -> Array | None:
    """The same for an index that holds coordinates, such as of some channels of each token."""
    sizes = shape[: index.shape[-1]]
    dims = node.inputs[0].shape if node.inputs[0] is not None else None
    if dims is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    runs = np.array([not isinstance(dim, int) for dim in dims[: len(sizes)]])
    every = np.moveaxis(np.indices(sizes), 0, -1).reshape(-1, len(sizes)) if runs.all() else None
    if every is not None and np.array_equal(index.reshape(-1, len(sizes)), every):
        return _NOTHING
    first = index
    for i in np.flatnonzero(runs):
        along = (a for a in range(index.ndim - 1) if _counts_along(index[..., i], a, sizes[i]))
        axis = next(along, None)
        if axis is None:
            return None
        first = first.take([0], axis)
    beside = first[..., ~runs]
    return beside if (index[..., ~runs] == beside).all() else None


def _counts_along(index: Array, axis: int, size: int) -> bool:
    """Whether it holds 0, 1, .. along an axis, and nothing else."""
    column = np.arange(size).reshape([-1 if i == axis else 1 for i in range(index.ndim)])
    return index.shape[axis] == size and bool((index == column).all())
