"""The length of a `Range` over an axis gets the name of that axis."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from optc.ir.shapes import _dimension

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


def dimension_of(graph, limit: str):
    """The dimension that `n` is found to be, before anything is inferred or folded."""
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x) => (int64 n) {{
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        last = Constant<value_int = -1>()
        zeros = Constant<value_ints = [0]>()
        ones = Constant<value_ints = [1]>()
        twos = Constant<value_ints = [2]>()
        threes = Constant<value_ints = [3]>()
        minus = Constant<value_ints = [-1]>()
        far = Constant<value_ints = [-9]>()
        {limit}
    }}""")
    dim = _dimension(model.graph.outputs[0])
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_it_is_found_through_every_spelling(limit, graph):
    assert shape_of_range(graph, limit) == ["s"]


CHAINS = {
    "entry of a slice": ("d = Slice(c, ones, threes)", "one", 8),
    "first of a slice": ("d = Slice(c, ones, threes)", "zero", "s"),
    "slice of a slice": ("e = Slice(c, ones, threes)\nd = Slice(e, ones, twos)", "zero", 8),
    "last entry": ("d = Identity(c)", "minus", 8),
}


@pytest.mark.parametrize(("slices", "index", "expected"), CHAINS.values(), ids=CHAINS)
def test_positions_add_up_along_slices(slices, index, expected, graph):
    limit = f"c = Shape(x)\n{slices}\ng = Gather(d, {index})\nn = Squeeze(g)"
    assert dimension_of(graph, limit) == expected


UNREADABLE = {
    "backwards": "d = Slice(c, minus, far, zeros, minus)\nn = Gather(d, one)",
    "every second": "d = Slice(c, zeros, threes, zeros, twos)\nn = Gather(d, one)",
    "start from the end": "d = Slice(c, minus, threes)\nn = Squeeze(d)",
    "end of a slice from the front": "d = Slice(c, zeros, twos)\nn = Gather(d, last)",
    "end of a slice": "d = Slice(c, ones, twos)\nn = Gather(d, last)",
}


@pytest.mark.parametrize("slices", UNREADABLE.values(), ids=UNREADABLE)
def test_other_slices_name_nothing(slices, graph):
    """Nothing is better than a wrong name; "end of a slice" is `s`, but needs the slice's end."""
    assert dimension_of(graph, f"c = Shape(x)\n{slices}") is None


def test_a_range_that_starts_elsewhere_stays_unnamed(graph):
    assert shape_of_range(graph, LIMITS["gather"], start="one") != ["s"]


def test_a_computed_limit_stays_unnamed(graph):
    assert shape_of_range(graph, LIMITS["gather"].replace("n =", "m =") + "\nn = Add(m, one)") != [
        "s"
    ]
