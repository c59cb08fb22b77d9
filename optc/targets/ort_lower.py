"""From the canonical graph to what ONNX Runtime's CPU kernels run fast."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.rewrite.encode_once import encoder_in_line
from optc.targets.ort_attention import lower_attention
from optc.targets.ort_encoder import note_encoder
from optc.targets.ort_float8 import keep_bounds
from optc.targets.ort_in_place import note_in_place
from optc.targets.ort_join import join_products
from optc.targets.ort_limit import note_most_tokens
from optc.targets.ort_norms import lower_norms
from optc.targets.ort_quant import lower_quant

__all__ = ["lowered"]


def lowered(model: ir.Model) -> ir.Model:
    """A copy with attention, norms and quantised products as kernels, and nothing unused."""
    copy = model.clone()
    with encoder_in_line(copy):
        lower_attention(copy)
        lower_norms(copy)
        lower_quant(copy)
        keep_bounds(copy)
        join_products(copy)
        note_encoder(copy)
    common.RemoveUnusedNodesPass()(copy)
    common.RemoveUnusedFunctionsPass()(copy)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(copy)
    note_in_place(copy)
    note_most_tokens(copy)
    return copy
