"""Sizes are read from the inputs of the graph, not from values in its middle.

`Shape(scores)` keeps the scores alive, and hides that a mask depends on sizes only. Where every
entry of a shape is a number or the size of an input, it is read from there instead. Of several
inputs with a size of that name the nearest upstream is taken: names are given by people, who call
the lengths of an encoder's and of a decoder's input alike at times.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.constants import constant
from optc.ir.insert import Insert

__all__ = ["anchor_sizes"]

_Dim = int | ir.SymbolicDim
_Places = dict[str, tuple[ir.Value, int]]


def anchor_sizes(model: ir.Model) -> int:
    """Rewrite `Shape` nodes in place; dead nodes are left for the caller. Returns how many."""
    inputs = _Inputs(model)
    count = 0
    for node in list(model.graph):
        if node.op_type != "Shape" or node.domain or node.inputs[0] is None:
            continue
        if node.inputs[0].is_graph_input() or node.outputs[0].is_graph_output():
            continue
        dims, places = _entries(node), inputs.places(node.inputs[0])
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
        if not -len(parts) <= entry < len(parts):
            continue
        part, dim = parts[entry], dims[entry]
        if index.ndim == 0 and isinstance(dim, int):
            number = ir.tensor(dim, dtype=ir.DataType.INT64)
            part = insert.node("Constant", [], ir.DataType.INT64, ir.Shape([]), value=number)
        elif index.ndim == 0:
            axis = insert.ints([0])
            part = insert.node("Squeeze", [part, axis], ir.DataType.INT64, ir.Shape([]))
        ir.convenience.replace_all_uses_with(output, part)


class _Inputs:
    """Where the sizes of each name can be read, and which of several places is the nearest."""

    def __init__(self, model: ir.Model):
        self._all: dict[str, list[tuple[ir.Value, int]]] = {}
        for value in model.graph.inputs:
            dims = [d.value if isinstance(d, ir.SymbolicDim) else None for d in value.shape or ()]
            for axis, name in enumerate(dims):
                if name is None or value.const_value is not None:
                    continue
                if dims.count(name) == 1:  # which of two axes a size came from is not known
                    self._all.setdefault(name, []).append((value, axis))
        shared = {value for found in self._all.values() if len(found) > 1 for value, _ in found}
        self._steps = _steps_from(model, shared) if shared else {}

    def places(self, value: ir.Value) -> _Places:
        """For each name the input and axis that are the fewest nodes upstream of `value`."""
        steps = self._steps.get(value, {})
        far = len(self._steps) + 1
        return {
            name: min(found, key=lambda place: steps.get(place[0], far))
            for name, found in self._all.items()
        }


def _steps_from(model: ir.Model, inputs: set[ir.Value]) -> dict[ir.Value, dict[ir.Value, int]]:
    """For each value the number of nodes between it and each of some inputs, where it has one."""
    steps: dict[ir.Value, dict[ir.Value, int]] = {value: {value: 0} for value in inputs}
    for node in model.graph:
        here: dict[ir.Value, int] = {}
        for value in node.inputs:
            for source, count in steps.get(value, {}).items() if value is not None else ():
                here[source] = min(count + 1, here.get(source, count + 1))
        steps |= dict.fromkeys(node.outputs, here)
    return steps


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
