"""Add small nodes in front of a place, with types and shapes."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["Insert", "take_over"]


class Insert:
    """Adds nodes in front of one node of the main graph.

    Args:
        model: The model.
        before: The node.
    """

    def __init__(self, model: ir.Model, before: ir.Node):
        self.graph = model.graph
        self.before = before

    def node(
        self,
        op: str,
        inputs: list[ir.Value],
        dtype: ir.DataType | None,
        shape: ir.Shape | None = None,
        **attributes: int | list[int] | ir.TensorProtocol,
    ) -> ir.Value:
        """The output of a new node."""
        made = ir.node(op, inputs, attributes)
        self.graph.insert_before(self.before, made)
        output = made.outputs[0]
        if dtype is not None:
            output.dtype = dtype
        output.shape = shape
        return output

    def ints(self, numbers: list[int]) -> ir.Value:
        """A constant vector of int64."""
        return self.node(
            "Constant", [], ir.DataType.INT64, ir.Shape([len(numbers)]), value_ints=numbers
        )

    def number(self, number: float, dtype: ir.DataType | None) -> ir.Value:
        """A constant scalar."""
        kind = dtype or ir.DataType.FLOAT
        tensor = ir.tensor(number, dtype=kind)
        return self.node("Constant", [], kind, ir.Shape([]), value=tensor)

    def size(self, value: ir.Value, start: int, end: int | None = None) -> ir.Value:
        """Some entries of a shape, as a vector."""
        attributes = {"start": start} if end is None else {"start": start, "end": end}
        return self.node("Shape", [value], ir.DataType.INT64, None, **attributes)

    def concat(self, parts: list[ir.Value]) -> ir.Value:
        """Vectors, joined."""
        return self.node("Concat", parts, ir.DataType.INT64, None, axis=0)

    def transpose(self, value: ir.Value, order: list[int]) -> ir.Value:
        """Axes in another order."""
        shape = ir.Shape([value.shape[i] for i in order]) if value.shape is not None else None
        return self.node("Transpose", [value], value.dtype, shape, perm=order)

    def lead(self, value: ir.Value, heads: int) -> ir.Value:
        """[.., S, D] to [-1, heads, S, D]."""
        rank = len(value.shape) if value.shape is not None else 4
        shape = self.concat([self.ints([-1, heads]), self.size(value, rank - 2)])
        return self.node("Reshape", [value, shape], value.dtype, _lead_shape(value, heads))

    def expand_heads(self, value: ir.Value, heads: int) -> ir.Value:
        """[B,1,S,D] to [B,heads,S,D]."""
        wanted = self.ints([1, heads, 1, 1])
        return self.node("Expand", [value, wanted], value.dtype, _with_heads(value.shape, heads))

    def expand_batch(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """[1, ..] to [B, ..] with the batch of `like`."""
        rank = len(value.shape) if value.shape is not None else 4
        shape = self.concat([self.size(like, 0, 1), self.ints([1] * (rank - 1))])
        first = like.shape[0] if like.shape is not None else None
        dims = [first, *value.shape[1:]] if value.shape is not None else None
        return self.node(
            "Expand", [value, shape], value.dtype, ir.Shape(dims) if dims is not None else None
        )


def _with_heads(shape: ir.Shape | None, heads: int) -> ir.Shape | None:
    return ir.Shape([shape[0], heads, *shape[2:]]) if shape is not None else None


def _lead_shape(value: ir.Value, heads: int) -> ir.Shape | None:
    if value.shape is None:
        return None
    total: int | ir.SymbolicDim = 1
    for dim in value.shape[:-2]:
        total = total * dim
    batch = total // heads
    return ir.Shape([batch, heads, *value.shape[-2:]])


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Users of `old`, and the graph's outputs, get `new`, under its name and described alike."""
    new.type, new.shape = old.type or new.type, old.shape or new.shape
    name, old.name = old.name, f"{old.name}_as_given"
    new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
