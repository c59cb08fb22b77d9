"""Rotary embeddings and RMS norms into the standard ops, throughout a graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.ir.probe import Probe, fixed_values
from optc.rewrite.rms_norm import fuse_rms_norm, match_rms_norm
from optc.rewrite.rotary import RotaryFusion, match_rotary

__all__ = ["fuse_standard_ops"]


def fuse_standard_ops(
    model: ir.Model, probe: Probe, wants: Callable[[str], bool]
) -> dict[str, int]:
    """Fuse in place; dead parts are removed.

    Args:
        model: The model.
        probe: Evaluates parts of it at sizes that differ from each other.
        wants: Whether a place, by the name of the value it replaces, may be touched.

    Returns:
        How many places became each op.
    """
    fixed = fixed_values(model)
    rotary = RotaryFusion(model)
    counts = {"RotaryEmbedding": 0, "RMSNormalization": 0}
    for node in list(model.graph):
        norm = match_rms_norm(node)
        if norm is not None and wants(str(norm.output.name)):
            fuse_rms_norm(model, norm)
            counts["RMSNormalization"] += 1
        rotation = match_rotary(probe, fixed, node)
        if rotation is not None and wants(str(rotation.output.name)):
            rotary.fuse(rotation)
            counts["RotaryEmbedding"] += 1
    if any(counts.values()):
        common.RemoveUnusedNodesPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
    return {op: count for op, count in counts.items() if count}
