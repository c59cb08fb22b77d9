"""Put the runtime's kernels in the place of nodes of the standard."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optc.rewrite.quant_nodes import NodeWriter

__all__ = ["DOMAIN", "Replacer", "added", "bias_of"]

DOMAIN = "com.microsoft"


class Replacer:
    """Replaces nodes of one graph, and counts them.

    Args:
        model: The model whose main graph is changed.

    Attributes:
        writer: Adds nodes and constants to the graph.
        count: How many nodes were replaced.
    """

    def __init__(self, model: ir.Model):
        self._graph = model.graph
        self.writer = NodeWriter(model)
        self.count = 0

    def replace(self, old: ir.Node, new: Sequence[ir.Node]) -> None:
        """Put `new` in the place of `old`; the first output of the last is what `old` gave."""
        for node in new[:-1]:
            name = self.writer.name(f"{old.outputs[0].name}_{node.op_type.lower()}")
            node.name = node.outputs[0].name = name
        new[-1].name = old.name
        ir.convenience.replace_nodes_and_values(
            self._graph, old, [old], new, old.outputs, new[-1].outputs
        )
        self.count += 1


def bias_of(node: ir.Node, channels: int) -> tuple[ir.Value | None, ir.Value | None]:
    """What a Gemm adds: one number for each channel, as kernels do; or else, after the kernel."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    is_row = bias is not None and bias.shape is not None and bias.shape == (channels,)
    return (bias, None) if is_row else (None, bias)


def added(product: ir.Node, late: ir.Value | None) -> list[ir.Node]:
    """A product, and what is added to it."""
    return [product] if late is None else [product, ir.node("Add", [product.outputs[0], late])]
