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


def test_heads_may_come_after_the_tokens(graph, run, rng):
    source = (
        text()
        .replace("float[b,2,s,8]", "float[b,s,2,8]")
        .replace("<start = 2, end = 3>", "<start = 1, end = 2>")
    )
    source = source.replace("(cos3, c1)", "(cos3, c2)").replace("(sin3, c1)", "(sin3, c2)")
    before, after = build(graph, source), build(graph, source)
    assert fuse(after) == {"RotaryEmbedding": ["y"]}
    data = {"x": rng.standard_normal((3, 6, 2, 8)).astype(np.float32)}
    np.testing.assert_allclose(run(after, data)["y"], run(before, data)["y"], atol=1e-6)


PARTS = {
    "halves": ("a = Slice(x, c0, c4, c3)\nb = Slice(x, c4, c8, c3)", "y = Concat<axis = -1>(p, q)"),
    "even and odd": (
        "a = Slice(x, c0, c8, c3, c2)\nb = Slice(x, c1, c8, c3, c2)",
        "y = Concat<axis = -1>(p, q)",
    ),
    "pairs": (
        "a = Slice(x, c0, c8, c3, c2)\nb = Slice(x, c1, c8, c3, c2)",
        """
        p5 = Unsqueeze(p, c4)
        q5 = Unsqueeze(q, c4)
        pq = Concat<axis = 4>(p5, q5)
        lead = Constant<value_ints = [0, 0, 0, 8]>()
        y = Reshape(pq, lead)
        """,
    ),
}


def in_parts(cut: str, join: str) -> str:
    """The rotation written over two parts of the data, with tables of half its width."""
    source = text(table="halves")
    start, end = source.index("double = Concat"), source.index("cos3 = Cos")
    source = source[:start] + source[end:].replace("(double)", "(angle)")
    source = source.replace(", float[1,s,8] double, float[b,2,s,8] turned", "")
    body = f"""
        {cut}
        ac = Mul(a, cos)
        bs = Mul(b, sin)
        p = Sub(ac, bs)
        bc = Mul(cos, b)
        as = Mul(a, sin)
        q = Add(bc, as)
        {join}
    }}"""
    return source[: source.index("low = Slice")] + body


@pytest.mark.parametrize(("cut", "join"), PARTS.values(), ids=PARTS)
def test_a_rotation_written_over_two_parts(cut, join, graph, run, rng):
    before, after = (build(graph, in_parts(cut, join)) for _ in range(2))
    assert fuse(after) == {"RotaryEmbedding": ["p"]}
    data = {"x": rng.standard_normal((3, 2, 6, 8)).astype(np.float32)}
    np.testing.assert_allclose(run(after, data)["y"], run(before, data)["y"], atol=1e-6)


def test_halves_that_are_the_whole_are_not_cut_and_joined_again(graph):
    model = build(graph, in_parts(*PARTS["halves"]))
    fuse(model)
    (node,) = [n for n in model.graph if n.op_type == "RotaryEmbedding"]
    assert node.inputs[0] is model.graph.inputs[0]
    assert model.graph.outputs[0].producer() is not None


def test_two_parts_with_a_wrong_sign_are_left_alone(graph):
    source = in_parts(*PARTS["halves"]).replace("q = Add(bc, as)", "q = Sub(bc, as)")
    assert fuse(build(graph, source)) == {}
