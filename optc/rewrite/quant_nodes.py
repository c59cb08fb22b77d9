"""Add named nodes and constants to a graph."""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.streamed import sizes

__all__ = ["NodeWriter"]


class NodeWriter:
    """Adds to one graph under names that nothing in it has yet.

    Args:
        model: The model whose main graph is added to.
    """

    def __init__(self, model: ir.Model):
        self._graph = model.graph
        self._taken = {str(out.name) for node in self._graph for out in node.outputs}
        self._taken |= {str(node.name) for node in self._graph}
        self._taken |= set(self._graph.initializers)
        self._taken |= {str(value.name) for value in self._graph.inputs}
        self._numbers: dict[str, int] = {}

    def constant(self, wish: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer, named `wish` or close to it."""
        name = self.name(wish)
        tensor.name = name
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(sizes(tensor)),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def insert(self, node: ir.Node, wish: str, like: ir.Value, *, before: ir.Node) -> ir.Value:
        """Put `node` before another; its output is typed `like` that value and is returned."""
        output = node.outputs[0]
        node.name = output.name = self.name(wish)
        output.shape = like.shape
        output.type = ir.TensorType(like.dtype) if like.dtype is not None else None
        self._graph.insert_before(before, node)
        return output

    def name(self, wish: str) -> str:
        """`wish`, or close to it: a name that nothing in the graph has, taken from now on."""
        name, number = wish, self._numbers.get(wish, 1)
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        self._numbers[wish] = number
        return name
