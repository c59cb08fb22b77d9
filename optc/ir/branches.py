"""`If` nodes whose condition is known: the branch that is taken replaces them.

Exporters write conditions on ranks and fixed sizes, such as "if x has fewer than three axes", and
leave both branches in the file. Values behind such a node have no known shape. A condition that
depends on a size which is free, however little, is left to the runtime.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.probe import Probe, ProbeFailure

__all__ = ["take_known_branches"]


def take_known_branches(model: ir.Model) -> int:
    """Replace them in place; returns how many."""
    taken = 0
    for node in list(model.graph):
        if node.op_type != "If" or node.domain or node.inputs[0] is None:
            continue
        condition = _content(model, node.inputs[0])
        if condition is None:
            continue
        branch = node.attributes["then_branch" if condition else "else_branch"]
        _replace(model, node, branch.as_graph())
        taken += 1
    return taken


def _content(model: ir.Model, condition: ir.Value) -> bool | None:
    """What it is, if it follows from ranks and fixed sizes."""
    if not _is_fixed(condition):
        return None
    symbols = {s for v in model.graph.inputs if v.shape is not None for s in v.shape.free_symbols()}
    try:
        content = Probe(model, dict.fromkeys(symbols, 3)).run(condition)
    except ProbeFailure:
        return None
    return bool(content.item()) if content.size == 1 else None


def _is_fixed(condition: ir.Value) -> bool:
    """Whether no input and no free size is upstream; how many axes there are is never free."""
    seen, stack = {condition}, [condition]
    while stack:
        node = stack.pop().producer()
        if node is None:
            continue
        if node.op_type == "Shape":
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            if shape is None or not all(isinstance(dim, int) for dim in shape):
                return False
            continue
        above = [v for v in node.inputs if v is not None and v not in seen]
        if node.op_type == "Size":
            above = [v for v in above if not _is_shape(v)]
        seen.update(above)
        stack += above
    return not any(value.is_graph_input() for value in seen)


def _is_shape(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Shape"


def _replace(model: ir.Model, node: ir.Node, branch: ir.Graph) -> None:
    results = list(branch.outputs)
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        value.name = f"{node.outputs[0].name}_{name}"
        model.graph.register_initializer(value)
    inner = list(branch)
    branch.remove(inner)
    model.graph.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        new.type, new.shape = new.type or old.type, new.shape or old.shape
        if old.is_graph_output():
            new.name, old.name = old.name, f"{old.name}_branch"
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
