"""A branch is taken only if its condition is the same at every size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest


def conditional(graph, condition: str) -> ir.Model:
    return graph(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s] x) => (float[b,s] y) {{
        zero = Constant<value_int = 0>()
        two = Constant<value_int = 2>()
        far = Constant<value_int = 700>()
        sizes = Shape(x)
        rank = Size(sizes)
        last = Constant<value_int = 1>()
        length = Gather(sizes, last)
        {condition}
        y = If(c) <
            then_branch = g1 () => (float[b,s] t) {{ t = Neg(x) }},
            else_branch = g2 () => (float[b,s] e) {{ e = Abs(x) }}
        >
    }}""")


def ops(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph.all_nodes()}


@pytest.mark.parametrize(
    ("condition", "kept", "sign"),
    [("c = Equal(rank, two)", "Neg", -1), ("c = Less(rank, two)", "Abs", 1)],
)
def test_a_condition_on_the_rank_is_known(condition, kept, sign, graph, run):
    model = conditional(graph, condition)
    assert ops(model) == {kept}
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], sign * x)


@pytest.mark.parametrize("condition", ["c = Greater(length, far)", "c = Less(length, two)"])
def test_a_condition_on_a_length_is_left_to_the_runtime(condition, graph):
    assert "If" in ops(conditional(graph, condition))
