"""Sizes are read from the inputs of the graph."""

from __future__ import annotations

import numpy as np
import pytest


def sized(graph, body: str):
    return graph(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x) => (int64[k] y) {{
        h = Neg(x)
        zero = Constant<value_int = 0>()
        last = Constant<value_int = -1>()
        parts = Constant<value_ints = [-1, 4]>()
        {body}
    }}""")


BODIES = {
    "whole": ("y = Shape(h)", [2, 5, 8]),
    "entry": ("c = Shape(h)\ng = Gather(c, zero)\na = Constant<value_ints = [0]>()\n"
              "y = Unsqueeze(g, a)", [2]),
    "number": ("c = Shape(h)\ng = Gather(c, last)\na = Constant<value_ints = [0]>()\n"
               "y = Unsqueeze(g, a)", [8]),
    "product": ("r = Reshape(h, parts)\nc = Shape<start = 0, end = 1>(r)\n"
                "one = Constant<value_ints = [1]>()\ny = Add(c, one)", [21]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=BODIES)
def test_sizes_stay_what_they_are(body, expected, graph, run):
    got = run(sized(graph, body), {"x": np.zeros((2, 5, 8), np.float32)})["y"]
    assert got.tolist() == expected


@pytest.mark.parametrize("name", ["entry", "product"])
def test_values_in_the_middle_are_not_kept_alive_for_their_size(name, graph):
    model = sized(graph, BODIES[name][0])
    assert "Neg" not in {node.op_type for node in model.graph}


def test_of_two_inputs_with_a_size_of_the_same_name_the_nearest_is_read(graph, run):
    """People call the lengths of an encoder's and of a decoder's input alike."""
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s] words, float[b,s] other) => (int64[2] y, int64[2] z) {
        h = Neg(words)
        k = Abs(other)
        c = Shape(h)
        d = Shape(k)
        y = Identity(c)
        z = Identity(d)
    }""")
    feeds = {"words": np.zeros((2, 5), np.float32), "other": np.zeros((2, 9), np.float32)}
    got = run(model, feeds)
    assert (got["y"].tolist(), got["z"].tolist()) == ([2, 5], [2, 9])
