"""Which caches of an engine may be one memory on both sides, read from the file's edges.

Works on the protocol buffer, so that opening an engine imports no compiler.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from optc.ir.interface import present_of

__all__ = ["caches_in_place"]


def caches_in_place(model: onnx.ModelProto) -> frozenset[str]:
    """Cache inputs of a lowered graph that may be one memory with their outputs.

    That is so where the input has one reader, which is known to write new tokens into it, and
    gives the output of the same cache:

    1. `GroupQueryAttention`, which copies nothing when both are one memory;
    2. `TensorScatter`, by itself or in the function body of a static cache;
    3. `If`, both of whose branches do.

    Args:
        model: The engine's graph; weights are not looked at.
    """
    readers = _readers(model.graph)
    makers = {name: node for node in model.graph.node for name in node.output if name}
    outputs = {value.name for value in model.graph.output}
    found = []
    for value in model.graph.input:
        present = present_of(value.name)
        if present not in outputs or present not in makers or value.name in outputs:
            continue
        if _updates(readers.get(value.name, []), value.name, makers[present], present):
            found.append(value.name)
    return frozenset(found)


def _readers(graph: onnx.GraphProto) -> Mapping[str, list[onnx.NodeProto]]:
    """Nodes by the names that they read, one entry per edge; branches read for their node."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in (*node.input, *_captured(node)):
            found.setdefault(name, []).append(node)
    return found


def _captured(node: onnx.NodeProto) -> list[str]:
    """Names that the branches of a node read; their own among them, which does no harm."""
    graphs = [g for a in node.attribute for g in (a.g, *a.graphs)]
    names = []
    while graphs:
        graph = graphs.pop()
        names += [value.name for value in graph.output]
        for inner in graph.node:
            names += inner.input
            graphs += [g for a in inner.attribute for g in (a.g, *a.graphs)]
    return names


def _updates(readers: list[onnx.NodeProto], past: str, maker: onnx.NodeProto, present: str) -> bool:
    """Whether the only reader of `past` writes into it and gives `present`."""
    if maker.op_type == "If":
        at = list(maker.output).index(present)
        branches = [attribute.g for attribute in maker.attribute]
        return all(r is maker for r in readers) and all(_branch(g, past, at) for g in branches)
    if len(readers) != 1 or readers[0] is not maker or past not in maker.input:
        return False
    pair = (list(maker.input).index(past), list(maker.output).index(present))
    return pair in _pairs(maker)


def _branch(graph: onnx.GraphProto, past: str, at: int) -> bool:
    """Whether a branch writes into `past` and gives it as its output `at`."""
    present = graph.output[at].name
    maker = next((node for node in graph.node if present in node.output), None)
    readers = _readers(graph).get(past, [])
    return maker is not None and _updates(readers, past, maker, present)


def _pairs(node: onnx.NodeProto) -> set[tuple[int, int]]:
    """Inputs and outputs of a node that may be one memory."""
    if node.op_type == "GroupQueryAttention":
        return {(3, 1), (4, 2)}
    if node.op_type == "TensorScatter":
        return {(0, 0)}
    # optc::FlashAttention (query, key, value, mask, past_key, past_value, ...): see its definition
    # A growing int8 cache is read whole before it is written, so one memory is right for it too.
    if node.op_type == "FlashAttention" and {"static", "int8"} & set(node.overload.split("_")):
        return {(4, 1), (5, 2)}
    return set()
