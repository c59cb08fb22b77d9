"""The length of a `Range` over an axis gets the name of that axis."""

from __future__ import annotations

import pytest

LIMITS = {
    "shape_slice": "c = Shape<start = 1, end = 2>(x)\nn = Squeeze(c)",
    "gather": "c = Shape(x)\nn = Gather(c, one)",
    "slice": "c = Shape(x)\nd = Slice(c, ones, twos)\nn = Squeeze(d)",
}


def shape_of_range(graph, limit: str, start: str = "zero"):
    model = graph(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x) => (int64[k] y) {{
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        ones = Constant<value_ints = [1]>()
        twos = Constant<value_ints = [2]>()
        {limit}
        r = Range({start}, n, one)
        y = Neg(r)
    }}""")
    (node,) = [n for n in model.graph if n.op_type == "Range"]
    return [d if isinstance(d, int) else d.value for d in node.outputs[0].shape or [None]]


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_it_is_found_through_every_spelling(limit, graph):
    assert shape_of_range(graph, limit) == ["s"]


def test_a_range_that_starts_elsewhere_stays_unnamed(graph):
    assert shape_of_range(graph, LIMITS["gather"], start="one") != ["s"]


def test_a_computed_limit_stays_unnamed(graph):
    assert shape_of_range(graph, LIMITS["gather"].replace("n =", "m =") + "\nn = Add(m, one)") != [
        "s"
    ]
