"""Shapes as expressions over the sizes of the inputs."""

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


def shapes(graph, body: str) -> dict[str, list[int | str]]:
    """Shapes of every value of a graph over x [b,s,8] whose output is y = Neg(z)."""
    model = graph(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x) => (float[k] y) {{
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        zeros = Constant<value_ints = [0]>()
        ones = Constant<value_ints = [1]>()
        twos = Constant<value_ints = [2]>()
        minus = Constant<value_ints = [-1]>()
        {body}
        y = Neg(z)
    }}""")
    return {
        str(value.name): [d if isinstance(d, int) else d.value for d in value.shape or [None]]
        for node in model.graph
        for value in node.outputs
    }


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_it_is_found_through_every_spelling(limit, graph):
    assert shape_of_range(graph, limit) == ["s"]


CHAINS = {
    "last entry": ("c = Shape(x)\nn = Gather(c, minus)", [8]),
    "entry of a slice": ("c = Shape(x)\nd = Slice(c, ones, threes)\nn = Gather(d, ones)", [8]),
    "first of a slice": ("c = Shape(x)\nd = Slice(c, ones, threes)\nn = Gather(d, zeros)", ["s"]),
    "slice of a slice": (
        "c = Shape(x)\nd = Slice(c, ones, threes)\ne = Slice(d, zeros, ones)\nn = Identity(e)",
        ["s"],
    ),
    "end of a slice": ("c = Shape(x)\nd = Slice(c, ones, twos)\nn = Gather(d, minus)", ["s"]),
}


@pytest.mark.parametrize(("body", "expected"), CHAINS.values(), ids=CHAINS)
def test_sizes_are_followed_through_slices(body, expected, graph):
    threes = "threes = Constant<value_ints = [3]>()\n"
    found = shapes(graph, f"{threes}{body}\nz = ConstantOfShape(n)")
    assert found["z"] == expected


def test_a_size_guarded_against_minus_one_is_that_size(graph):
    """How older exporters write `expand(b, 4, -1)`."""
    found = shapes(
        graph,
        """
        b = Shape<start = 0, end = 1>(x)
        fours = Constant<value_ints = [4]>()
        keep = Constant<value_int = -1>()
        wanted = Concat<axis = 0>(b, fours, minus)
        count = Shape(wanted)
        filled = ConstantOfShape<value = int64[1] {1}>(count)
        any = Mul(filled, keep)
        guard = Equal(wanted, any)
        size = Where(guard, filled, wanted)
        row = Constant<value_floats = [1.0, 2.0, 3.0]>()
        z = Expand(row, size)
        """,
    )
    assert found["z"] == ["b", 4, 3]


def test_a_reshape_to_the_rest_gets_the_quotient(graph):
    found = shapes(
        graph,
        """
        lead = Shape<start = 0, end = 2>(x)
        parts = Constant<value_ints = [-1, 2]>()
        size = Concat<axis = 0>(lead, parts)
        z = Reshape(x, size)
        """,
    )
    assert found["z"] == ["b", "s", 4, 2]


def test_what_was_inferred_on_the_way_is_not_kept_as_a_constant(graph):
    """A later pass may change what a value is computed from."""
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,4,8] x) => (int64[1] y) {
        c = Shape<start = 1, end = 2>(x)
        y = Neg(c)
    }""")
    computed = [v for node in model.graph for v in node.outputs if node.op_type != "Constant"]
    assert all(value.const_value is None and not value.metadata_props for value in computed)


def test_a_range_that_starts_elsewhere_stays_unnamed(graph):
    assert shape_of_range(graph, LIMITS["gather"], start="one") != ["s"]


def test_a_computed_limit_gives_an_expression(graph):
    limit = LIMITS["gather"].replace("n =", "m =") + "\nn = Add(m, one)"
    assert shape_of_range(graph, limit) == ["s + 1"]


@pytest.mark.parametrize("end", [2**31 - 1, 2**62, 2**63 - 1])
@pytest.mark.parametrize("start", [0, 1])
def test_a_slice_to_an_end_that_is_very_large(start, end, graph):
    """The bounds are known only once constants are folded."""
    found = shapes(
        graph,
        f"""
        start0 = Constant<value_int = {start}>()
        end0 = Constant<value_int = {end}>()
        start1 = Unsqueeze(start0, zeros)
        end1 = Unsqueeze(end0, zeros)
        z = Slice(x, start1, end1, ones)
        """,
    )
    assert found["z"] == ["b", "s - 1" if start else "s", 8]
