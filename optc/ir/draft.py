"""Nodes that are not in the graph yet: to be evaluated first, and kept or thrown away."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from optc.core.context import Array

__all__ = ["Draft"]


class Draft:
    """Makes nodes over the values of a model without changing its graph.

    Args:
        model: The model.
        label: What the names of new values begin with.
    """

    def __init__(self, model: ir.Model, label: str):
        self.model = model
        self._label = label
        self._nodes: list[ir.Node] = []
        named = [v for node in model.graph.all_nodes() for v in node.outputs]
        named += [*model.graph.inputs, *model.graph.initializers.values()]
        self._used = {value.name for value in named}

    def node(
        self,
        op: str,
        inputs: list[ir.Value],
        dtype: ir.DataType | None = ir.DataType.INT64,
        shape: ir.Shape | None = None,
        **attributes: int | list[int] | ir.TensorProtocol,
    ) -> ir.Value:
        """The output of a new node."""
        output = self._add(ir.node(op, inputs, attributes)).outputs[0]
        if dtype is not None:
            output.dtype = dtype
        output.shape = shape
        return output

    def ints(self, numbers: list[int]) -> ir.Value:
        """A constant vector of int64."""
        return self.node("Constant", [], shape=ir.Shape([len(numbers)]), value_ints=numbers)

    def constants(self, contents: Mapping[ir.Value, Array]) -> dict[ir.Value, ir.Value]:
        """Constants in the place of values."""
        return {
            value: self.node("Constant", [], value.dtype, value=ir.tensor(content))
            for value, content in contents.items()
        }

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """One size of a value, int64 [1]."""
        return self.node("Shape", [value], shape=ir.Shape([1]), start=axis, end=axis + 1)

    def sizes(self, parts: list[int | ir.Value]) -> ir.Value:
        """Numbers and vectors of int64, joined to one vector."""
        vectors = [self.ints([p]) if isinstance(p, int) else p for p in parts]
        return self.node("Concat", vectors, axis=0) if len(vectors) > 1 else vectors[0]

    def again(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Node:
        """The same node on other inputs; shapes of what it gives are not known."""
        attributes = list(node.attributes.values())
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes,
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        for new, old in zip(made.outputs, node.outputs, strict=True):
            new.type = old.type
        return self._add(made)

    def keep(self) -> list[ir.Node]:
        """Put all nodes at the head of the graph; the caller sorts it and drops what is unused."""
        kept, self._nodes = self._nodes, []
        self.model.graph.insert_before(self.model.graph[0], kept)
        return kept

    def discard(self) -> None:
        """Forget all nodes: nothing of the graph is used by them any more."""
        for node in self._nodes:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self._nodes = []

    def _add(self, node: ir.Node) -> ir.Node:
        for output in node.outputs:
            output.name = self._name(node.op_type.lower())
        node.name = output.name
        self._nodes.append(node)
        return node

    def _name(self, wish: str) -> str:
        count = len(self._used)
        while (name := f"{self._label}_{wish}_{count}") in self._used:
            count += 1
        self._used.add(name)
        return name
