"""`Relu` and `Clip` in front of float8, in words that ONNX Runtime does not take for rounding.

Its optimiser lets `QuantizeLinear` do what a `Relu` in front of it does, which is right for
integers and wrong for float8; for `Clip` the session does not open. `Max` and `Min` say the same
and stay.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.insert import Insert, take_over
from optc.targets.ort_faults import rounds_to_float8

__all__ = ["keep_bounds"]


def keep_bounds(model: ir.Model) -> int:
    """Write the bounds of what is rounded to float8 as `Max` and `Min`, in place.

    Args:
        model: A lowered graph; only its main graph is looked at.

    Returns:
        Number of nodes replaced.
    """
    sources = [node.inputs[0] for node in model.graph if rounds_to_float8(node)]
    producers = [value.producer() for value in sources if value is not None]
    bounded = [node for node in dict.fromkeys(producers) if node is not None and _bounds(node)]
    for node in bounded:
        _replace(model, node)
    return len(bounded)


def _bounds(node: ir.Node) -> bool:
    return not node.domain and node.op_type in ("Relu", "Clip")


def _replace(model: ir.Model, node: ir.Node) -> None:
    old, insert = node.outputs[0], Insert(model, node)
    value, *limits = node.inputs
    if node.op_type == "Relu":
        limits = [insert.number(0.0, old.dtype)]
    new = value
    for op, limit in zip(("Max", "Min"), limits, strict=False):
        if limit is not None and new is not None:
            new = insert.node(op, [new, limit], old.dtype, old.shape)
    if new is not None and new is not value:
        take_over(old, new)
        model.graph.remove(node, safe=True)
