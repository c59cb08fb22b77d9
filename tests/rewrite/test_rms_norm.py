"""RMS norms: every spelling becomes the standard op, look-alikes do not."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.probe import Probe
from optc.rewrite.standard_ops import fuse_standard_ops

SQUARES = {"pow": "s = Pow(x, two)", "mul": "s = Mul(x, x)"}
ROOTS = {
    "reciprocal": "root = Sqrt(v)\nr = Reciprocal(root)\nn = Mul(x, r)",
    "one_over": "root = Sqrt(v)\nr = Div(one, root)\nn = Mul(r, x)",
    "divide": "root = Sqrt(v)\nn = Div(x, root)",
    "power": "r = Pow(v, minus_half)\nn = Mul(x, r)",
}
WEIGHTS = {"right": "y = Mul(n, w)", "left": "y = Mul(w, n)"}


def text(square="pow", root="reciprocal", weight="right", axis=-1, mean="x") -> str:
    return f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x, float[8] w) => (float[b,s,8] y) {{
        one = Constant<value_float = 1.0>()
        two = Constant<value_float = 2.0>()
        minus_half = Constant<value_float = -0.5>()
        epsilon = Constant<value_float = 0.001>()
        axes = Constant<value_ints = [{axis}]>()
        {SQUARES[square]}
        m = ReduceMean<keepdims = 1>(s, axes)
        v = Add(m, epsilon)
        {ROOTS[root]}
        {WEIGHTS[weight]}
    }}"""


def fuse(model):
    return fuse_standard_ops(model, Probe(model, {"b": 2, "s": 3}), lambda name: True)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("square", SQUARES)
def test_every_spelling_becomes_the_standard_op(square, root, weight, graph, run, rng):
    before = graph(text(square, root, weight))
    after = graph(text(square, root, weight))
    assert fuse(after) == {"RMSNormalization": ["y"]}
    assert [n.op_type for n in after.graph] == ["RMSNormalization"]
    data = {"x": rng.standard_normal((2, 3, 8)), "w": rng.standard_normal(8)}
    data = {k: v.astype(np.float32) for k, v in data.items()}
    np.testing.assert_allclose(run(after, data)["y"], run(before, data)["y"], atol=1e-6)


def test_the_epsilon_is_kept(graph):
    model = graph(text())
    fuse(model)
    assert model.graph[0].attributes["epsilon"].as_float() == pytest.approx(0.001)


def test_a_mean_over_another_axis_is_left_alone(graph):
    assert fuse(graph(text(axis=1))) == {}


def test_a_mean_of_something_else_is_left_alone(graph):
    model = graph(text().replace("s = Pow(x, two)", "z = Neg(x)\ns = Mul(x, z)"))
    assert fuse(model) == {}


def test_an_unwanted_place_is_left_alone(graph):
    model = graph(text())
    assert fuse_standard_ops(model, Probe(model, {}), lambda name: False) == {}
    assert "ReduceMean" in [n.op_type for n in model.graph]
