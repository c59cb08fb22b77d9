"""Sizes are read from the inputs of the graph, not from values in its middle.

`Shape(scores)` keeps the scores alive, and hides that a mask depends on sizes only. Where every
entry of a shape is a number or the size of an input, it is read from there instead.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.constants import constant
from optc.ir.insert import Insert

__all__ = ["anchor_sizes"]

_Dim = int | ir.SymbolicDim
_Places = dict[str | None, tuple[ir.Value, int]]


def anchor_sizes(model: ir.Model) -> int:
    """Rewrite `Shape` nodes in place; dead nodes are left for the caller. Returns how many."""
    places = _places(model)
    count = 0
    for node in list(model.graph):
        if node.op_type != "Shape" or node.domain or node.inputs[0] is None:
            continue
        if node.inputs[0].is_graph_input() or node.outputs[0].is_graph_output():
            continue
        dims = _entries(node)
        if dims is None or not all(_is_readable(dim, places) for dim in dims):
            continue
        parts = [_read(Insert(model, node), places, dim) for dim in dims]
        _hand_out(model, node, dims, parts)
        whole = parts[0]
        if len(parts) > 1:
            joined = ir.node("Concat", parts, {"axis": 0})
            model.graph.insert_before(node, joined)
            whole = joined.outputs[0]
        whole.dtype, whole.shape = ir.DataType.INT64, ir.Shape([len(parts)])
        ir.convenience.replace_all_uses_with(node.outputs[0], whole)
        count += 1
    return count


def _hand_out(model: ir.Model, node: ir.Node, dims: list[_Dim], parts: list[ir.Value]) -> None:
    """Whoever takes one entry of the shape gets it, and not the shape."""
    for user in [use.node for use in node.outputs[0].uses() if use.node.op_type == "Gather"]:
        index, output = constant(user.inputs[1]), user.outputs[0]
        if index is None or index.size != 1 or output.is_graph_output():
            continue
        insert, entry = Insert(model, user), int(index.item())
        part, dim = parts[entry], dims[entry]
        if index.ndim == 0 and isinstance(dim, int):
            number = ir.tensor(dim, dtype=ir.DataType.INT64)
            part = insert.node("Constant", [], ir.DataType.INT64, ir.Shape([]), value=number)
        elif index.ndim == 0:
            axis = insert.ints([0])
            part = insert.node("Squeeze", [part, axis], ir.DataType.INT64, ir.Shape([]))
        ir.convenience.replace_all_uses_with(output, part)


def _places(model: ir.Model) -> _Places:
    """Where the size of each name can be read: an input and its axis."""
    found: _Places = {}
    for value in model.graph.inputs:
        if value.const_value is not None:
            continue
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found.setdefault(dim.value, (value, axis))
    return found


def _entries(node: ir.Node) -> list[_Dim] | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(shape))
    return list(shape)[start:end] or None


def _is_readable(dim: _Dim, places: _Places) -> bool:
    """Whether a size is a number, a name, or a sum of products of numbers and names."""
    words = str(dim if isinstance(dim, int) else dim.value).replace(" + ", "*").split("*")
    return all(word.isdecimal() or word in places for word in words)


def _read(insert: Insert, places: _Places, dim: _Dim) -> ir.Value:
    text = str(dim if isinstance(dim, int) else dim.value)
    terms = [_product(insert, places, term.split("*")) for term in text.split(" + ")]
    total = terms[0]
    for term in terms[1:]:
        total = insert.node("Add", [total, term], ir.DataType.INT64, ir.Shape([1]))
    return total


def _product(insert: Insert, places: _Places, words: list[str]) -> ir.Value:
    factors = [_word(insert, places, word) for word in words]
    product = factors[0]
    for factor in factors[1:]:
        product = insert.node("Mul", [product, factor], ir.DataType.INT64, ir.Shape([1]))
    return product


def _word(insert: Insert, places: _Places, word: str) -> ir.Value:
    if word.isdecimal():
        return insert.ints([int(word)])
    value, axis = places[word]
    size = insert.size(value, axis, axis + 1)
    size.shape = ir.Shape([1])
    return size
