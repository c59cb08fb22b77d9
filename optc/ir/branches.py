"""`If` nodes whose condition is known: the branch that is taken replaces them.

Exporters write conditions on ranks and fixed sizes, such as "if x has fewer than three axes", and
leave both branches in the file. Values behind such a node have no known shape.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.probe import Probe, ProbeFailure
from optc.ir.thresholds import counts_past_thresholds

__all__ = ["take_known_branches"]

_SMALL = (3, 8)
_SMALLEST = (1, 2)


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
    """What it is at every size; a size is tried around each number that it is compared with."""
    symbols = {s for v in model.graph.inputs if v.shape is not None for s in v.shape.free_symbols()}
    small = [dict.fromkeys(symbols, count) for count in _SMALL]
    try:
        past = counts_past_thresholds(model, condition, small, ())
        around = {count - back for count in past for back in range(4)}
        counts = sorted({*_SMALLEST, *_SMALL, *around})
        probes = [Probe(model, dict.fromkeys(symbols, count)) for count in counts]
        found = {bool(probe.run(condition).all()) for probe in probes}
    except ProbeFailure:
        return None
    return found.pop() if len(found) == 1 else None


def _replace(model: ir.Model, node: ir.Node, branch: ir.Graph) -> None:
    results = list(branch.outputs)
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        value.name = f"{node.name or 'branch'}_{name}"
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
