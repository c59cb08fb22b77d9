"""Nodes that bring several masks to the one that the canonical op takes."""

from __future__ import annotations

import math

import onnx_ir as ir

from optc.rewrite.scores import MaskTerm

__all__ = ["join_masks"]


def join_masks(
    model: ir.Model, before: ir.Node, terms: list[MaskTerm], query: ir.Value, key: ir.Value
) -> tuple[ir.Value | None, str]:
    """Join masks into one, full in its last two axes.

    Args:
        model: Model that receives the nodes.
        before: Node in front of which they go.
        terms: Boolean or additive masks.
        query: [B,Hq,S,D], for S.
        key: [B,Hkv,T,D], for T.

    Returns:
        The mask and its kind, `bool` or `bias`; `(None, "")` when there are no terms.
    """
    if not terms:
        return None, ""
    builder = _Builder(model, before)
    boolean = ir.DataType.BOOL
    values = [builder.readable(term, query) for term in terms]
    booleans = [v for v in values if v.dtype == boolean]
    biases = [v for v in values if v.dtype != boolean]
    mask = booleans[0] if booleans else biases[0]
    for other in booleans[1:]:
        mask = builder.add("And", [mask, other], boolean)
    if booleans and biases:
        hidden = builder.constant(-math.inf, query)
        mask = builder.add("Where", [mask, biases[0], hidden], query.dtype)
    for other in biases[1:]:
        mask = builder.add("Add", [mask, other], query.dtype)
    return builder.full(mask, query, key), "bias" if biases else "bool"


def _low(query: ir.Value) -> float:
    """A score that hides, which is neither minus infinity nor the lowest of its type."""
    return -3e4 if query.dtype == ir.DataType.FLOAT16 else -1e30


class _Builder:
    def __init__(self, model: ir.Model, before: ir.Node):
        self.graph = model.graph
        self.before = before

    def add(
        self, op: str, inputs: list[ir.Value], dtype: ir.DataType | None, **attributes: int
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        self.graph.insert_before(self.before, node)
        if dtype is not None:
            node.outputs[0].dtype = dtype
        return node.outputs[0]

    def readable(self, term: MaskTerm, query: ir.Value) -> ir.Value:
        """One mask of rank 4, boolean or additive in the query's type.

        A finite fill stays finite: kernels give zeros to rows whose mask is minus infinity, or
        the lowest number, throughout, where the original averages all values.
        """
        value = term.value
        if term.negated:
            value = self.add("Not", [value], ir.DataType.BOOL)
        value = self.unflatten(value, query)
        if value.dtype == ir.DataType.BOOL:
            if not term.finite:
                return value
            parts = [value, self.constant(0.0, query), self.constant(_low(query), query)]
            return self.add("Where", parts, query.dtype)
        if value.dtype != query.dtype and query.dtype is not None:
            value = self.add("Cast", [value], query.dtype, to=int(query.dtype))
        if not term.finite:
            return value
        return self.add("Max", [value, self.constant(_low(query), query)], query.dtype)

    def constant(self, number: float, like: ir.Value) -> ir.Value:
        dtype = like.dtype or ir.DataType.FLOAT
        node = ir.node("Constant", [], {"value": ir.tensor(number, dtype=dtype)})
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def unflatten(self, mask: ir.Value, query: ir.Value) -> ir.Value:
        """[B*H,S,T] to [B,H,S,T]."""
        if mask.shape is None or len(mask.shape) != 3 or mask.shape[0] == 1:
            return mask
        whole = ir.DataType.INT64
        rest = ir.node("Constant", [], {"value_ints": [-1]})
        self.graph.insert_before(self.before, rest)
        heads = self.add("Shape", [query], whole, start=1, end=2)
        last = self.add("Shape", [mask], whole, start=1, end=3)
        shape = self.add("Concat", [rest.outputs[0], heads, last], whole, axis=0)
        return self.add("Reshape", [mask, shape], mask.dtype)

    def full(self, mask: ir.Value, query: ir.Value, key: ir.Value) -> ir.Value:
        """Expand to [.., S, T] unless the shape says that it is so already."""
        if _is_full(mask, query, key):
            return mask
        one = ir.node("Constant", [], {"value_ints": [1, 1]})
        self.graph.insert_before(self.before, one)
        whole = ir.DataType.INT64
        rows = self.add("Shape", [query], whole, start=2, end=3)
        columns = self.add("Shape", [key], whole, start=2, end=3)
        shape = self.add("Concat", [one.outputs[0], rows, columns], whole, axis=0)
        return self.add("Expand", [mask, shape], mask.dtype)


def _is_full(mask: ir.Value, query: ir.Value, key: ir.Value) -> bool:
    shapes = mask.shape, query.shape, key.shape
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return False
    last = [*mask.shape[-2:]]  # type: ignore[index]
    wanted = [query.shape[2], key.shape[2]]  # type: ignore[index]
    named = all(isinstance(d, int) or d.value is not None for d in [*last, *wanted])
    return named and last == wanted
