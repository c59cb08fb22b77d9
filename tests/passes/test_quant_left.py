"""What `quant` finds, and leaves alone with a reason, in unusual places of a graph."""

from __future__ import annotations

import numpy as np
import pytest
from quant_graphs import C, K, build, ops, quantise, random, reasons

BRANCHES = f"""main (float[b, s, {K}] x, bool flag, float[{K}, {C}] w) => (float[b, s, {C}] y) {{
    y = If(flag) <
        then_branch = one () => (float[b, s, {C}] first) {{ first = MatMul(x, w) }},
        else_branch = two () => (float[b, s, {C}] second) {{
            found = MatMul(x, w)
            second = Neg(found)
        }}
    >
}}"""
LOOP = f"""main (float[b, s, {K}] x, int64 n, float[{K}, {K}] w) => (float[b, s, {K}] y) {{
    [loop] y = Loop(n, , x) <
        body = inner (int64 i, bool go, float[b, s, {K}] h) => (bool on, float[b, s, {K}] next) {{
            on = Identity(go)
            next = MatMul(h, w)
        }}
    >
}}"""
INNER = {
    "If": (BRANCHES, (K, C), {"flag": np.array(True)}, {"first", "found"}),
    "Loop": (LOOP, (K, K), {"n": np.array(2)}, {"next"}),
}


@pytest.mark.parametrize("case", INNER)
def test_products_inside_of_other_nodes_are_left_alone_and_named(case, rng):
    text, shape, others, names = INNER[case]
    model = build(text, {"w": random(rng, *shape)})
    result = quantise(model, [{"x": random(rng, 1, 5, K), **others}], scheme="w8")
    assert result.sites == ()
    reason = "it is part of a branch or a loop, where nothing is quantised"
    assert reasons(result) == dict.fromkeys(names, reason)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "w8", "int4", "fp8"])
def test_a_product_over_nothing_is_left_alone(scheme, rng):
    text = f"""main (float[b, s, {K}] x, float[b, s, 0] e, float[0, {C}] none, float[{K}, {C}] w)
    => (float[b, s, {C}] y) {{
        zeros = MatMul(e, none)
        some = MatMul(x, w)
        y = Add(zeros, some)
    }}"""
    model = build(text, {"none": np.zeros((0, C), np.float32), "w": random(rng, K, C)})
    feeds = [{"x": random(rng, 1, 5, K), "e": np.zeros((1, 5, 0), np.float32)} for _ in range(4)]
    result = quantise(model, feeds, scheme=scheme)
    assert result.sites == ("some",)
    assert reasons(result) == {"zeros": "its constant has no elements"}


def test_a_table_whose_rows_are_counted_from_the_end_is_a_table(rng):
    text = f"""main (int64[b, s] ids, float[40, {K}] table) => (float[b, s, {K}] y)
    {{ y = Gather<axis = -2>(table, ids) }}"""
    model = build(text, {"table": random(rng, 40, K)})
    result = quantise(model, [{"ids": rng.integers(0, 40, (1, 6))}], scheme="w8")
    assert result.sites == ("y",)
    assert ops(model) == ["DequantizeLinear", "Gather"]
