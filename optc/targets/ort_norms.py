"""A sum that is normalised becomes one kernel: `SkipSimplifiedLayerNormalization`.

ONNX Runtime's own optimiser finds this around `SimplifiedLayerNormalization`, not around the
standard `RMSNormalization`. One node less per norm, 3 to 6 % of a decoding step of a small
quantised model (`docs/performance.md`).
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["lower_norms"]

_CONTRIB = "com.microsoft"


def lower_norms(model: ir.Model) -> int:
    """Fuse each `RMSNormalization` of a sum with the sum, in place.

    Args:
        model: Changed in place.

    Returns:
        Number of norms fused. Only float32 is touched, where both round alike.
    """
    fused = sum(_fuse(model.graph, node) for node in list(model.graph))
    if fused:
        model.opset_imports[_CONTRIB] = model.graph.opset_imports[_CONTRIB] = 1
    return fused


def _fuse(graph: ir.Graph, norm: ir.Node) -> bool:
    total = _summed(norm)
    if total is None:
        return False
    add = total.producer()
    assert add is not None
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    node = ir.node(
        "SkipSimplifiedLayerNormalization",
        [*add.inputs, norm.inputs[1]],
        {"epsilon": epsilon},
        domain=_CONTRIB,
        num_outputs=4,
        name=norm.name,
    )
    graph.insert_before(add, node)
    output, mean, deviation, kept = node.outputs
    mean.name = deviation.name = ""
    for old, new in ((norm.outputs[0], output), (total, kept)):
        new.name, old.name = old.name, f"{old.name}_unfused"
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove([norm, add], safe=True)
    return True


def _summed(norm: ir.Node) -> ir.Value | None:
    """The sum [B,S,H] of two float32 values of its own shape that `norm` normalises over H."""
    if norm.domain or norm.op_type != "RMSNormalization" or len(norm.inputs) != 2:
        return None
    total, scale = norm.inputs
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    add = total.producer() if total is not None else None
    if total is None or scale is None or add is None or (add.domain, add.op_type) != ("", "Add"):
        return None
    shape = total.shape
    if shape is None or len(shape) != 3 or shape.has_unknown_dim() or axis not in (-1, 2):
        return None
    plain = total.dtype == scale.dtype == ir.DataType.FLOAT and scale.is_initializer()
    fits = scale.shape == ir.Shape([shape[2]]) and all(
        value is not None and value.shape == shape for value in add.inputs
    )
    return total if plain and fits else None
