"""Rotary embeddings: recognised by what they compute, with tables of the right batch."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.probe import Probe
from optc.rewrite.standard_ops import fuse_standard_ops

ROTATIONS = {
    "slices": """
        low = Slice(x, c0, c4, c3)
        high = Slice(x, c4, c8, c3)
        minus = Neg(high)
        turned = Concat<axis = -1>(minus, low)
    """,
    "split": """
        low, high = Split<axis = -1, num_outputs = 2>(x)
        minus = Neg(high)
        turned = Concat<axis = 3>(minus, low)
    """,
    "pairs": """
        even = Slice(x, c0, c8, c3, c2)
        odd = Slice(x, c1, c8, c3, c2)
        minus = Neg(odd)
        even5 = Unsqueeze(even, c4)
        minus5 = Unsqueeze(minus, c4)
        both = Concat<axis = 4>(minus5, even5)
        lead = Constant<value_ints = [0, 0, 0, 8]>()
        turned = Reshape(both, lead)
    """,
}
TABLES = {
    "halves": "double = Concat<axis = -1>(angle, angle)",
    "pairs": """
        angle4 = Unsqueeze(angle, c3)
        twice = Concat<axis = 3>(angle4, angle4)
        flat = Constant<value_ints = [0, 0, 8]>()
        double = Reshape(twice, flat)
    """,
}


def text(rotation="slices", table="halves") -> str:
    constants = "\n".join(f"c{i} = Constant<value_ints = [{i}]>()" for i in (0, 1, 2, 3, 4, 8))
    return f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,2,s,8] x, float[4] speeds) => (float[b,2,s,8] y)
        <int64[s] range, float[1,s,4] angle, float[1,s,8] double, float[b,2,s,8] turned> {{
        {constants}
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        count_1d = Shape<start = 2, end = 3>(x)
        count = Squeeze(count_1d)
        range = Range(zero, count, one)
        axes = Constant<value_ints = [0, 2]>()
        column = Unsqueeze(range, axes)
        place = Cast<to = 1>(column)
        angle = Mul(place, speeds)
        {TABLES[table]}
        cos3 = Cos(double)
        sin3 = Sin(double)
        cos = Unsqueeze(cos3, c1)
        sin = Unsqueeze(sin3, c1)
        {ROTATIONS[rotation]}
        straight = Mul(x, cos)
        turning = Mul(turned, sin)
        y = Add(straight, turning)
    }}"""


def build(graph, source: str):
    import onnx_ir as ir

    model = graph(source)
    (speeds,) = [v for v in model.graph.inputs if v.name == "speeds"]
    speeds.const_value = ir.tensor(np.array([1, 0.3, 0.1, 0.03], np.float32), name="speeds")
    model.graph.register_initializer(speeds)
    model.graph.inputs.remove(speeds)
    return model


def fuse(model):
    return fuse_standard_ops(model, Probe(model, {"b": 2, "s": 5}), lambda name: True)


@pytest.mark.parametrize(
    ("rotation", "table", "interleaved"),
    [("slices", "halves", 0), ("split", "halves", 0), ("pairs", "pairs", 1)],
)
def test_every_spelling_becomes_the_standard_op(rotation, table, interleaved, graph, run, rng):
    source = text(rotation, table)
    before, after = build(graph, source), build(graph, source)
    assert fuse(after) == {"RotaryEmbedding": ["y"]}
    (node,) = [n for n in after.graph if n.op_type == "RotaryEmbedding"]
    assert node.attributes["interleaved"].as_int() == interleaved
    data = {"x": rng.standard_normal((3, 2, 6, 8)).astype(np.float32)}  # batch 3: see repair
    np.testing.assert_allclose(run(after, data)["y"], run(before, data)["y"], atol=1e-6)


@pytest.mark.parametrize(("rotation", "table"), [("slices", "pairs"), ("pairs", "halves")])
def test_a_rotation_that_does_not_fit_its_tables_is_left_alone(rotation, table, graph):
    assert fuse(build(graph, text(rotation, table))) == {}


def test_a_rotation_the_other_way_round_is_left_alone(graph):
    source = text().replace("minus = Neg(high)", "minus = Neg(low)")
    source = source.replace("(minus, low)", "(high, minus)")
    assert fuse(build(graph, source)) == {}
