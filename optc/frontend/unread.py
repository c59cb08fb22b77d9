"""See that an exported graph reads what it was given examples of."""

from __future__ import annotations

import onnx_ir as ir

from optc.core.errors import InputError

__all__ = ["check_read"]

_SIZES = frozenset({"Shape", "Size"})


def check_read(model: ir.Model, where: str) -> tuple[str, ...]:
    """Refuse a graph that ignores an input; say which are read for their shape only.

    Args:
        model: As exported.
        where: What it was exported from, for messages.

    Returns:
        A sentence for each input of which only the shape is read.

    Raises:
        InputError: An input is read by nothing.
    """
    outputs = set(model.graph.outputs)
    sentences = []
    for value in model.graph.inputs:
        readers = {node.op_type for node in value.consumers()}
        if value in outputs or readers - _SIZES:
            continue
        if not readers:
            problem = f"the graph does not read the input '{value.name}', though it was given"
            remedy = "leave it out of the example inputs, or see that forward() uses it"
            raise InputError(problem, where=where, remedy=remedy)
        sentences.append(f"of the input '{value.name}' the graph reads nothing but the shape")
    return tuple(sentences)
