"""What looks like something that `flash` knows, and is something else: the numbers must stay.

Each graph is run as it is written and after `canonicalize` and `flash`, at sizes that nobody tried
while rewriting.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Context
from optc.ir.canonical import canonicalize
from optc.ir.flash_attention import flash_attention_nodes, read_spec
from optc.passes.flash import Flash

RANGES = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    rows_1d = Shape<start = 2, end = 3>(q)
    rows = Squeeze(rows_1d)
    j = Range(zero, rows, one)
    axis = Constant<value_ints = [1]>()
    i = Unsqueeze(j, axis)
    causal = LessOrEqual(j, i)
    hidden = Constant<value_float = -inf>()
"""
PLAIN = "scores = Identity(raw)"


def site(
    body: str = PLAIN, *, keys: str = "kx = Identity(k)\nvx = Identity(v)", more: str = "",
    tail: str = "p = Softmax<axis = -1>(scores)\ny = MatMul(p, vx)", out: str = "b,2,s,8",
) -> str:  # fmt: skip
    return f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,2,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v{more}) => (float[{out}] y) {{
        {keys}
        kt = Transpose<perm = [0, 1, 3, 2]>(kx)
        raw = MatMul(q, kt)
        {body}
        {tail}
    }}"""


def feeds(rng, count: int, batch: int = 1, **more: np.ndarray) -> dict[str, np.ndarray]:
    made = {n: rng.standard_normal((batch, 2, count, 8)).astype(np.float32) for n in "qkv"}
    return made | more


def check(text: str, data: dict[str, np.ndarray], graph, run, *, partial: bool = False) -> ir.Model:
    model = graph(text)
    Flash(partial=partial).run(model, Context())
    expected, got = run(ir.from_onnx_text(text), data), run(model, data)
    for name, wanted in expected.items():
        np.testing.assert_allclose(got[name], wanted, rtol=1e-4, atol=1e-4)
    return model


MASKS = {
    "blocks, so many back": """
        size = Constant<value_int = 64>()
        most = Constant<value_int = 3>()
        bi = Div(i, size)
        bj = Div(j, size)
        back = Sub(bi, bj)
        near = Less(back, most)
        seen = And(causal, near)
    """,
    "a distance that is no whole number": """
        back = Sub(i, j)
        far = Cast<to = 1>(back)
        most = Constant<value_float = 64.5>()
        near = Less(far, most)
        seen = And(causal, near)
    """,
    "a distance in units of a window": """
        back = Sub(i, j)
        far = Cast<to = 1>(back)
        unit = Constant<value_float = 0.015625>()
        share = Mul(far, unit)
        whole = Constant<value_float = 1.0>()
        near = Less(share, whole)
        seen = And(causal, near)
    """,
    "every seventh column": """
        seven = Constant<value_int = 7>()
        three = Constant<value_int = 3>()
        rest = Mod(j, seven)
        third = Equal(rest, three)
        some = Not(third)
        seen = And(causal, some)
    """,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("count", [100, 300])
def test_masks_that_are_causal_where_texts_are_short(mask, count, graph, run, rng):
    text = site(f"{RANGES}\n{mask}\nscores = Where(seen, raw, hidden)")
    check(text, feeds(rng, count), graph, run)


TOKENS = {
    "documents": """
        end = Constant<value_int = 2>()
        is_end = Equal(ids, end)
        number = Cast<to = 7>(is_end)
        along = Constant<value_int = 1>()
        document = CumSum(number, along)
        of_key = Unsqueeze(document, a12)
        of_query = Unsqueeze(document, a13)
        same = Equal(of_key, of_query)
        seen = And(causal, same)
    """,
    "two numbers hidden": """
        three = Constant<value_int = 3>()
        wide = Unsqueeze(ids, a12)
        is_pad = Equal(wide, zero)
        is_three = Equal(wide, three)
        either = Or(is_pad, is_three)
        kept = Not(either)
        seen = And(causal, kept)
    """,
    "ones only": "w = Unsqueeze(ids, a12)\nkept = Equal(w, one)\nseen = And(causal, kept)",
    "positive only": "w = Unsqueeze(ids, a12)\nkept = Greater(w, zero)\nseen = And(causal, kept)",
}


@pytest.mark.parametrize("mask", TOKENS.values(), ids=TOKENS)
def test_masks_over_numbers_other_than_zero_and_one(mask, graph, run, rng):
    axes = "a12 = Constant<value_ints = [1, 2]>()\na13 = Constant<value_ints = [1, 3]>()"
    body = f"{RANGES}\n{axes}\n{mask}\nscores = Where(seen, raw, hidden)"
    ids = np.array([[1, 5, 2, 1, 3, -1, 1, 0]])
    check(site(body, more=", int64[b,s] ids"), feeds(rng, 8, ids=ids), graph, run)


@pytest.mark.parametrize("test", ["Equal(w, one)", "Greater(w, zero)"])
def test_padding_may_be_told_by_a_comparison(test, graph):
    axes = "a12 = Constant<value_ints = [1, 2]>()"
    mask = f"w = Unsqueeze(ids, a12)\nkept = {test}\nseen = And(causal, kept)"
    text = site(
        f"{RANGES}\n{axes}\n{mask}\nscores = Where(seen, raw, hidden)", more=", int64[b,s] ids"
    )
    model = graph(text)
    Flash().run(model, Context())
    (node,) = flash_attention_nodes(model)
    assert (read_spec(node).causal, read_spec(node).mask) == (True, "bool")


CUTS = {
    "the last keys": "kx = Slice(k, far, ends, two)\nvx = Slice(v, far, ends, two)",
    "the first keys": "kx = Slice(k, start, near, two)\nvx = Slice(v, start, near, two)",
    "clamped places": "kx = Gather<axis = 2>(k, place)\nvx = Gather<axis = 2>(v, place)",
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("count", [20, 100])
def test_keys_that_are_cut_where_texts_are_long(cut, count, graph, run, rng):
    numbers = """
        far = Constant<value_ints = [-32]>()
        near = Constant<value_ints = [32]>()
        start = Constant<value_ints = [0]>()
        ends = Constant<value_ints = [9223372036854775807]>()
        two = Constant<value_ints = [2]>()
        n0 = Constant<value_int = 0>()
        n1 = Constant<value_int = 1>()
        last = Constant<value_int = 31>()
        all_1d = Shape<start = 2, end = 3>(k)
        all = Squeeze(all_1d)
        places = Range(n0, all, n1)
        place = Min(places, last)
    """
    check(site(keys=f"{numbers}\n{cut}"), feeds(rng, count), graph, run)


VIEWS = {
    "a Softmax over queries and keys": """
        flat = Constant<value_ints = [0, 0, -1]>()
        one_row = Reshape(raw, flat)
        soft = Softmax<axis = -1>(one_row)
        back = Shape(raw)
        p = Reshape(soft, back)
    """,
    "scores in whole numbers": """
        w = Cast<to = 6>(raw)
        f = Cast<to = 1>(w)
        p = Softmax<axis = -1>(f)
    """,
    "a shift before a softcap": """
        c = Constant<value_float = 2.0>()
        moved = Add(raw, c)
        bent = Tanh(moved)
        p = Softmax<axis = -1>(bent)
    """,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_scores_that_are_changed_on_the_way(view, graph, run, rng):
    check(site(tail=f"{view}\ny = MatMul(p, vx)"), feeds(rng, 6), graph, run, partial=True)


@pytest.mark.parametrize("factor", ["-1.0", "0.0001"])
def test_a_fill_that_is_multiplied_until_it_hides_nothing(factor, graph, run, rng):
    body = f"""{RANGES}
        fill = Constant<value_float = -10000.0>()
        masked = Where(causal, raw, fill)
        f = Constant<value_float = {factor}>()
        scores = Mul(masked, f)
    """
    check(site(body), feeds(rng, 6), graph, run, partial=True)


STANDARD = """<ir_version: 11, opset_import: ["": 24]>
agraph (float[b,2,s,8] q, float[b,2,t,8] k, float[b,2,t,8] v{more}) => (float[b,2,s,8] y) {{
    {body}
}}"""


def test_lengths_move_the_place_that_causality_counts_from(graph, run, rng):
    body = f"{RANGES}\ny = Attention(q, k, v, causal, , , n)".replace(
        "hidden = Constant", "h = Constant"
    )
    text = STANDARD.format(body=body, more=", int64[b] n").replace("b,2,t,8", "b,2,s,8")
    check(text, feeds(rng, 6, 2, n=np.array([6, 3])), graph, run)


def test_a_past_with_a_mask_over_all_keys(graph, run, rng):
    text = STANDARD.format(
        body="y, pk2, pv2 = Attention(q, k, v, m, pk, pv)",
        more=", bool[s,a] m, float[b,2,p,8] pk, float[b,2,p,8] pv",
    )
    past = {n: rng.standard_normal((1, 2, 3, 8)).astype(np.float32) for n in ("pk", "pv")}
    check(text, feeds(rng, 4, m=rng.random((4, 7)) > 0.3, **past), graph, run)


def test_heads_that_are_part_of_the_batch_elsewhere(graph, run, rng):
    """The product is over [1,B*H,S,D], its operands come from [B,H,S,D]."""
    tail = """
        soft = Softmax<axis = -1>(scores)
        y = MatMul(soft, vx)
    """
    moves = "\n".join(f"{n}x = Reshape({n}, one_batch)" if n != "q" else "" for n in "kv")
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[2,4,s,8] q, float[2,4,s,8] k, float[2,4,s,8] v) => (float[1,8,s,8] y) {{
        one_batch = Constant<value_ints = [1, 8, -1, 8]>()
        {moves}
        qx = Reshape(q, one_batch)
        kt = Transpose<perm = [0, 1, 3, 2]>(kx)
        scores = MatMul(qx, kt)
        {tail}
    }}"""
    data = {n: rng.standard_normal((2, 4, 3, 8)).astype(np.float32) for n in "qkv"}
    check(text, data, graph, run)


def test_one_key_head_in_an_einsum(graph, run, rng):
    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,4,s,8] q, float[b,s,8] k, float[b,s,8] v) => (float[b,4,s,8] y) {
        raw = Einsum<equation = "bhid,bjd->bhij">(q, k)
        p = Softmax<axis = -1>(raw)
        y = Einsum<equation = "bhij,bjd->bhid">(p, v)
    }"""
    data = {n: rng.standard_normal((2, 3, 8)).astype(np.float32) for n in "kv"}
    data["q"] = rng.standard_normal((2, 4, 3, 8)).astype(np.float32)
    model = check(text, data, graph, run)
    assert len(list(flash_attention_nodes(model))) == 1


def test_probabilities_applied_twice(graph, run, rng):
    check(site(tail="p = Softmax<axis = -1>(raw)\nz = MatMul(p, vx)\ny = MatMul(p, z)"),
          feeds(rng, 5), graph, run, partial=True)  # fmt: skip


def test_attention_in_a_branch_is_refused(graph):
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (bool c, float[b,2,s,8] q, float[b,2,8,s] k, float[b,2,s,8] v) => (float[b,2,s,8] y) {
        y = If(c) <
            then_branch = g1 () => (float[b,2,s,8] t) {
                raw = MatMul(q, k)
                p = Softmax<axis = -1>(raw)
                t = MatMul(p, v)
            },
            else_branch = g2 () => (float[b,2,s,8] e) { e = Neg(v) }
        >
    }""")
    result = Flash().run(model, Context())
    assert [refusal.site for refusal in result.refusals] == ["p"]
    assert "branch" in result.refusals[0].reason


@pytest.mark.parametrize("name", ["?", "batch size", "unk__12:0", "2s", "batch-size"])
def test_axes_may_have_any_name(name, graph):
    model = ir.from_onnx_text(site())
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([name, *value.shape[1:]])
    canonicalize(model)
    assert Flash().run(model, Context()).rewrites == 1


def test_a_mask_from_data_that_hides_whole_rows_with_a_number(graph, run, rng):
    """Of a row whose keys all have the same low score, later keys count as well."""
    body = f"""{RANGES}
        fill = Constant<value_float = -1000000000.0>()
        last = Constant<value_ints = [-1]>()
        ones = Constant<value_ints = [1]>()
        sums = ReduceSum<keepdims = 0>(k, last)
        firsts = ReduceMax<keepdims = 0>(sums, ones)
        low = Constant<value_float = 0.0>()
        kept = Greater(firsts, low)
        a12 = Constant<value_ints = [1, 2]>()
        kept4 = Unsqueeze(kept, a12)
        some = Where(kept4, raw, fill)
        scores = Where(causal, some, fill)
    """
    data = feeds(rng, 6)
    data["k"][:, :, :3] = -1
    check(site(body), data, graph, run)


def test_multi_query_einsum_with_tokens_first(graph, run, rng):
    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,4,s,8] q, float[b,s,8] k, float[b,s,8] v) => (float[b,s,4,8] y) {
        raw = Einsum<equation = "bhqd,bkd->bhqk">(q, k)
        p = Softmax<axis = -1>(raw)
        y = Einsum<equation = "bhqk,bkd->bqhd">(p, v)
    }"""
    data = {n: rng.standard_normal((2, 3, 8)).astype(np.float32) for n in "kv"}
    data["q"] = rng.standard_normal((2, 4, 3, 8)).astype(np.float32)
    model = check(text, data, graph, run)
    assert len(list(flash_attention_nodes(model))) == 1
