"""Operations that combine tokens outside attention are found, the others are not."""

from __future__ import annotations

import pytest

from optc.ir.mixing import mixing_nodes

MIXING = {
    "CumSum": "axis = Constant<value_int = 1>()\ny = CumSum(x, axis)",
    "ReduceMean": "axes = Constant<value_ints = [1]>()\ny = ReduceMean(x, axes)",
    "Softmax": "y = Softmax<axis = 1>(x)",
    "Pad": "pads = Constant<value_ints = [0, 1, 0, 0, -1, 0]>()\ny = Pad(x, pads)",
    "MatMul": "t = Transpose<perm = [0, 2, 1]>(x)\ny = MatMul(t, x)",
    "Concat": "y = Concat<axis = 1>(x, x)",
    "Slice": """
        a = Constant<value_ints = [1]>()
        b = Constant<value_ints = [9223372036854775807]>()
        y = Slice(x, a, b, a)
    """,
    "first of Slice": """
        a = Constant<value_ints = [0]>()
        b = Constant<value_ints = [1]>()
        first = Slice(x, a, b, b)
        y = Add(x, first)
    """,
    "LayerNormalization": """
        sizes = Shape<start = 1>(x)
        one = Constant<value_floats = [1.0]>()
        scale = Expand(one, sizes)
        y = LayerNormalization<axis = 1>(x, scale)
    """,
    "LpNormalization": "y = LpNormalization<axis = 1>(x)",
    "Hardmax": "y = Hardmax<axis = 1>(x)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization<axes = [1]>(x)",
    "Trilu": "y = Trilu<upper = 0>(x)",
    "InstanceNormalization": """
        t = Transpose<perm = [0, 2, 1]>(x)
        w = Constant<value_floats = [1.0, 1.0]>()
        n = InstanceNormalization(t, w, w)
        y = Transpose<perm = [0, 2, 1]>(n)
    """,
    "Reshape": """
        turned = Constant<value_ints = [0, 2, -1]>()
        y = Reshape(x, turned)
    """,
    "Gather": """
        size = Shape<start = 1, end = 2>(x)
        count = Squeeze(size)
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        range = Range(zero, count, one)
        last = Sub(count, one)
        backwards = Sub(last, range)
        y = Gather<axis = 1>(x, backwards)
    """,
}
APART = {
    "elementwise": "y = Tanh(x)",
    "linear": "w = Constant<value_floats = [1.0, 2.0]>()\ny = MatMul(x, w)",
    "softmax over channels": "y = Softmax<axis = -1>(x)",
    "norm": "axes = Constant<value_ints = [-1]>()\ny = ReduceMean(x, axes)",
    "channels": "y = Concat<axis = -1>(x, x)",
    "gather of each in its place": """
        size = Shape<start = 1, end = 2>(x)
        count = Squeeze(size)
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        range = Range(zero, count, one)
        y = Gather<axis = 1>(x, range)
    """,
    "channels, the other way round": """
        order = Constant<value_ints = [1, 0]>()
        y = Gather<axis = 2>(x, order)
    """,
    "layer norm of channels": """
        w = Constant<value_floats = [1.0, 1.0]>()
        y = LayerNormalization(x, w)
    """,
    "norm of channels": "y = LpNormalization(x)",
    "reshape of channels": """
        split = Constant<value_ints = [0, 0, 2, 1]>()
        whole = Constant<value_ints = [0, -1, 2]>()
        apart = Reshape(x, split)
        y = Reshape(apart, whole)
    """,
    "pad of channels": "pads = Constant<value_ints = [0, 0, 1, 0, 0, 0]>()\ny = Pad(x, pads)",
}


def model(graph, body: str):
    return graph(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,2] x) => (float[d0,d1,d2] y) {{
        {body}
    }}""")


@pytest.mark.parametrize("op", MIXING)
def test_found(op, graph):
    assert [m.node.op_type for m in mixing_nodes(model(graph, MIXING[op]), "s")] == [op.split()[-1]]


@pytest.mark.parametrize("body", APART.values(), ids=APART)
def test_left_alone(body, graph):
    assert mixing_nodes(model(graph, body), "s") == []
