"""Rotary embeddings and RMS norms into the standard ops, throughout a graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.ir.canonical import merge_common_parts
from optc.ir.probe import Probe, fixed_values
from optc.rewrite.rms_norm import fuse_rms_norm, match_rms_norm
from optc.rewrite.rotary import match_halves, match_rotary
from optc.rewrite.rotary_graph import RotaryFusion

__all__ = ["fuse_standard_ops"]


def fuse_standard_ops(
    model: ir.Model, probe: Probe, wants: Callable[[str], bool]
) -> dict[str, list[str]]:
    """Fuse in place; dead parts are removed.

    Args:
        model: The model.
        probe: Evaluates parts of it at sizes that differ from each other.
        wants: Whether a place, by the name of the value it replaces, may be touched.

    Returns:
        Names of the places that became each op; ops without any are left out.
    """
    fixed = fixed_values(model)
    rotary = RotaryFusion(model, probe)
    places: dict[str, list[str]] = {"RotaryEmbedding": [], "RMSNormalization": []}
    for node in list(model.graph):
        norm = match_rms_norm(node)
        if norm is not None and wants(name := str(norm.output.name)):
            fuse_rms_norm(model, norm)
            places["RMSNormalization"].append(name)
        rotation = match_rotary(probe, fixed, node)
        if rotation is not None and wants(name := str(rotation.output.name)):
            rotary.fuse(rotation)
            places["RotaryEmbedding"].append(name)
        halves = match_halves(probe, fixed, node)
        if halves is not None and wants(name := str(halves.first.name)):
            rotary.fuse_halves(halves)
            places["RotaryEmbedding"].append(name)
    if any(places.values()):
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        merge_common_parts(model)
    return {op: names for op, names in places.items() if names}
