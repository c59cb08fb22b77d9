"""Clean up a freshly translated graph, in time linear in its size.

The same steps as the optimizer that PyTorch's exporter runs, but for two things: rules for
convolutions are left out, and so is `slice_split_rule`, whose matcher searches the whole graph for
every node (a Llama of 30 layers: minutes instead of seconds).
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import onnx_fusions
from onnxscript.rewriter.rules import common as rules

__all__ = ["simplify"]

_ROUNDS = 2
_RULES = (
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.dropout_zero_rule,
    rules.dropout_inference_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.cast_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.flatten_to_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
)


def simplify(model: ir.Model) -> None:
    """Inline functions, fold constants, remove what does nothing; in place.

    At opset 23 norms and rotary embeddings become the operators of that opset.
    """
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, _RULES)
    for step in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)
    onnx_fusions.fuse(model)
    common.ClearMetadataAndDocStringPass()(model)
