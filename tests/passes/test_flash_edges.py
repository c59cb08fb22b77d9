"""`flash` where a careless rewrite would compute something else."""

from __future__ import annotations

import numpy as np
import pytest

from optc.core.context import Context
from optc.ir.flash_attention import flash_attention_nodes, read_spec
from optc.passes.flash import Flash

CORE = """
    kt = Transpose<perm = [0, 1, 3, 2]>(k)
    raw = MatMul(q, kt)
    {scores}
    soft = Softmax<axis = -1>(scores)
    {tail}
    y = MatMul(p, v)
"""


def attention(
    graph, scores, *, q="b,2,s,8", k="b,2,t,8", dtype="float", more="", tail="p = Identity(soft)"
):
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    agraph ({dtype}[{q}] qi, {dtype}[{k}] ki, {dtype}[{k}] vi{more}) => ({dtype}[{q}] y) {{
        q = Neg(qi)
        k = Neg(ki)
        v = Neg(vi)
        {CORE.format(scores=scores, tail=tail)}
    }}"""
    return graph(text)


def data(rng, s=5, t=5, b=2, dtype=np.float32, heads=2):
    shapes = {"qi": (b, heads, s, 8), "ki": (b, heads, t, 8), "vi": (b, heads, t, 8)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def fuse(model):
    result = Flash().run(model, Context())
    assert result.rewrites == 1, result.refusals
    return read_spec(next(flash_attention_nodes(model)))


def same(run, before, after, feeds, atol=1e-5):
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], atol=atol)


RANGES = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    rows_1d = Shape<start = 2, end = 3>(q)
    rows = Squeeze(rows_1d)
    columns_1d = Shape<start = 2, end = 3>(k)
    columns = Squeeze(columns_1d)
    j = Range(zero, columns, one)
    i0 = Range(zero, rows, one)
    axis = Constant<value_ints = [1]>()
    i = Unsqueeze(i0, axis)
    hidden = Constant<value_float = -inf>()
"""


def test_a_mask_that_shows_only_when_counts_differ_is_kept(graph, run, rng):
    scores = RANGES + "vis = Less(j, rows)\nscores = Where(vis, raw, hidden)"
    before, after = attention(graph, scores), attention(graph, scores)
    fuse(after)
    same(run, before, after, data(rng, s=3, t=6))


@pytest.mark.parametrize("width", ["w = Constant<value_int = 9000>()", "w = Mul(k20, k20)"])
def test_a_window_is_never_taken_for_none(width, graph):
    scores = (
        RANGES
        + f"""
        k20 = Constant<value_int = 20>()
        {width}
        causal = LessOrEqual(j, i)
        first = Sub(i, w)
        near = Greater(j, first)
        vis = And(causal, near)
        scores = Where(vis, raw, hidden)
    """
    )
    spec = fuse(attention(graph, scores, k="b,2,s,8"))
    assert (spec.window, spec.mask) in {(400, ""), (0, "bool")}


def test_a_causal_mask_that_says_what_is_hidden(graph, run, rng):
    scores = RANGES + "later = Greater(j, i)\nscores = Where(later, hidden, raw)"
    before = attention(graph, scores, k="b,2,s,8")
    after = attention(graph, scores, k="b,2,s,8")
    spec = fuse(after)
    assert (spec.causal, spec.mask) == (True, "")
    same(run, before, after, data(rng))


WHERE = "scores = Where(keep, raw, fill)"
ADD = "zero = Constant<value_float = 0.0>()\nm = Where(keep, zero, fill)\nscores = Add(raw, m)"


@pytest.mark.parametrize(
    ("apply", "fill"), [(WHERE, "-3.4028235e38"), (WHERE, "-10000.0"), (ADD, "-3.4028235e38")]
)
def test_a_row_that_sees_nothing_keeps_what_a_finite_fill_gives(apply, fill, graph, run, rng):
    scores = f"fill = Constant<value_float = {fill}>()\n{apply}"
    more = ", bool[b,1,s,t] keep"
    before, after = attention(graph, scores, more=more), attention(graph, scores, more=more)
    fuse(after)
    keep = rng.random((2, 1, 5, 5)) > 0.4
    keep[1, 0, 2] = False
    same(run, before, after, data(rng) | {"keep": keep})


def test_a_softcap_with_two_signs(graph, run, rng):
    scores = """
        c = Constant<value_float = -5.0>()
        s = Constant<value_float = -0.2>()
        inner = Mul(raw, s)
        bent = Tanh(inner)
        scores = Mul(bent, c)
    """
    before, after = attention(graph, scores), attention(graph, scores)
    spec = fuse(after)
    assert (spec.softcap, spec.scale) == (pytest.approx(5.0), pytest.approx(1.0))
    same(run, before, after, data(rng))


@pytest.mark.parametrize("scale", ["0.0", "-1.0"])
def test_refuses_a_scale_that_kernels_do_not_take(scale, graph):
    scores = f"c = Constant<value_float = {scale}>()\nscores = Mul(raw, c)"
    result = Flash().run(attention(graph, scores), Context())
    assert "which kernels do not do" in result.refusals[0].reason


def test_queries_that_all_rows_share(graph, run, rng):
    shared = {"scores": "scores = Identity(raw)", "q": "1,2,s,8"}
    before, after = attention(graph, **shared), attention(graph, **shared)
    fuse(after)
    feeds = data(rng) | {"qi": rng.standard_normal((1, 2, 5, 8)).astype(np.float32)}
    same(run, before, after, feeds)


def test_refuses_batches_that_differ(graph):
    result = Flash().run(attention(graph, "scores = Identity(raw)", q="c,2,s,8"), Context())
    assert "different axes" in result.refusals[0].reason


def test_half_precision_with_a_softmax_in_float32(graph, run, rng):
    kinds = {"dtype": "float16", "tail": "p = Cast<to = 10>(soft)"}
    before = attention(graph, "scores = Cast<to = 1>(raw)", **kinds)
    after = attention(graph, "scores = Cast<to = 1>(raw)", **kinds)
    fuse(after)
    same(run, before, after, data(rng, dtype=np.float16), atol=4e-3)


def test_a_long_sum_in_front_of_a_softmax_costs_little(graph):
    sums = "\n".join(f"a{i + 1} = Add(a{i}, a{i})" for i in range(400))
    model = graph(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,8] a0) => (float[b,8] y) {{
        {sums}
        p = Softmax(a400)
        y = Neg(p)
    }}""")
    assert Flash().run(model, Context()).rewrites == 0


def test_a_cache_in_front_of_decomposed_attention(graph, run, rng):
    """Keys are what is in the cache and the new ones; the mask counts from the cache's end."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,2,s,8] qi, float[b,2,s,8] ki, float[b,2,s,8] vi, float[b,2,p,8] pk,
            float[b,2,p,8] pv) => (float[b,2,s,8] y, float[b,2,t,8] k, float[b,2,t,8] v) {
        q = Neg(qi)
        k = Concat<axis = 2>(pk, ki)
        v = Concat<axis = 2>(pv, vi)
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        past_1d = Shape<start = 2, end = 3>(pk)
        past = Squeeze(past_1d)
        total_1d = Shape<start = 2, end = 3>(k)
        total = Squeeze(total_1d)
        j = Range(zero, total, one)
        i0 = Range(past, total, one)
        axis = Constant<value_ints = [1]>()
        i = Unsqueeze(i0, axis)
        visible = LessOrEqual(j, i)
        hidden = Constant<value_float = -inf>()
        kt = Transpose<perm = [0, 1, 3, 2]>(k)
        raw = MatMul(q, kt)
        scores = Where(visible, raw, hidden)
        soft = Softmax<axis = -1>(scores)
        y = MatMul(soft, v)
    }"""
    before, after = graph(text), graph(text)
    spec = fuse(after)
    assert (spec.causal, spec.mask) == (True, "")
    counts = {"qi": 4, "ki": 4, "vi": 4, "pk": 3, "pv": 3}
    feeds = {n: rng.standard_normal((2, 2, c, 8)).astype(np.float32) for n, c in counts.items()}
    same(run, before, after, feeds)
