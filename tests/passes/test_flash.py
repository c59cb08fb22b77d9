"""`flash`: what it fuses, what it makes of it, what it refuses and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from attention_graphs import APPLY, KEYS, MASKS, SCALES, Spelling

from optc.core.base import PassResult
from optc.core.context import Context
from optc.core.errors import UnsupportedError
from optc.ir.flash_attention import AttentionSpec, flash_attention_nodes, read_spec
from optc.passes.flash import Flash


def feeds(rng: np.random.Generator, groups: int = 4, batch: int = 2, seq: int = 6) -> dict:
    sizes = {"wq": (32, 32), "wk": (32, groups * 8), "wv": (32, groups * 8)}
    weights = {k: rng.standard_normal(s).astype(np.float32) for k, s in sizes.items()}
    return weights | {"x": rng.standard_normal((batch, seq, 32)).astype(np.float32)}


def fuse(model: ir.Model) -> tuple[PassResult, AttentionSpec]:
    result = Flash().run(model, Context())
    Flash().ensures(model, result)
    assert result.rewrites == 1, result
    (node,) = flash_attention_nodes(model)
    return result, read_spec(node)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


CAUSAL_SPELLINGS = [
    Spelling(mask, apply)
    for mask in ("compare", "trilu", "constant")
    for apply in APPLY
    if apply != "none"
]
OTHER_SPELLINGS = [
    Spelling(),
    *[Spelling("compare", "add", key=key) for key in KEYS],
    *[Spelling("compare", "where", scale=scale) for scale in SCALES],
    Spelling("window", "where"),
    Spelling("compare", "add", groups=2),
    Spelling("compare", "add", groups=1, key="through_rank_3", scale="both"),
    Spelling("compare", "where", softcap=3.0),
    Spelling("checkers", "where"),
    Spelling("checkers", "add"),
    Spelling(
        "compare",
        "add",
        tail="nan = IsNaN(soft)\nfill = Constant<value_float = 0.0>()\np = Where(nan, fill, soft)",
    ),
]


@pytest.mark.parametrize("spelling", CAUSAL_SPELLINGS + OTHER_SPELLINGS, ids=str)
def test_the_fused_graph_computes_the_same(spelling, graph, run, rng):
    before = graph(spelling.text())
    after = graph(spelling.text())
    fuse(after)
    data = feeds(rng, spelling.groups, seq=9)
    expected, got = run(before, data)["y"], run(after, data)["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spelling", CAUSAL_SPELLINGS, ids=str)
def test_every_spelling_of_a_causal_mask_becomes_an_attribute(spelling, graph):
    model = graph(spelling.text())
    _, spec = fuse(model)
    assert (spec.causal, spec.window, spec.mask) == (True, 0, "")


def test_no_mask_arithmetic_is_left_behind(graph):
    model = graph(Spelling("compare", "where").text())
    fuse(model)
    assert not {"Range", "LessOrEqual", "Where", "Softmax"} & set(ops(model))


def test_a_window_is_read_off_the_mask(graph):
    _, spec = fuse(graph(Spelling("window", "where").text()))
    assert (spec.causal, spec.window, spec.mask) == (True, 4, "")


def test_a_mask_that_means_something_else_is_handed_over(graph):
    _, spec = fuse(graph(Spelling("checkers", "where").text()))
    assert (spec.causal, spec.mask) == (False, "bool")


def test_an_absent_mask_stays_absent(graph):
    _, spec = fuse(graph(Spelling().text()))
    assert (spec.causal, spec.mask) == (False, "")


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_is_found_wherever_it_was_folded(scale, graph):
    _, spec = fuse(graph(Spelling(scale=scale).text()))
    assert spec.scale == pytest.approx(0.25, rel=1e-6)


def test_the_softcap_is_found(graph):
    _, spec = fuse(graph(Spelling("compare", "where", softcap=3.0).text()))
    assert spec.softcap == pytest.approx(3.0)
    assert spec.scale == pytest.approx(0.25)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_repetition_of_grouped_heads_is_removed(groups, graph):
    model = graph(Spelling("compare", "add", groups=groups).text())
    fuse(model)
    (node,) = flash_attention_nodes(model)
    assert [node.inputs[i].shape[1] for i in (0, 1, 2)] == [4, groups, groups]
    assert "Expand" not in ops(model)


def test_the_standard_op_is_taken_too(graph, run, rng):
    text = """<ir_version: 10, opset_import: ["": 23]>
    agraph (float[b,2,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v) => (float[b,2,s,8] y) {
        y = Attention<is_causal = 1, scale = 0.5>(q, k, v)
    }"""
    before, after = graph(text), graph(text)
    _, spec = fuse(after)
    assert spec == AttentionSpec(scale=0.5, causal=True)
    data = {n: rng.standard_normal((2, 2, 5, 8)).astype(np.float32) for n in "qkv"}
    np.testing.assert_allclose(run(after, data)["y"], run(before, data)["y"], atol=1e-6)


def test_a_padding_mask_from_an_input_is_kept(graph, run, rng):
    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,2,s,8] q, float[b,2,8,s] kt, float[b,2,s,8] v, bool[b,1,1,s] keep)
        => (float[b,2,s,8] y) {
        q2 = Neg(q)
        kt2 = Neg(kt)
        scores = MatMul(q2, kt2)
        hidden = Constant<value_float = -inf>()
        masked = Where(keep, scores, hidden)
        p = Softmax(masked)
        y = MatMul(p, v)
    }"""
    before, after = graph(text), graph(text)
    _, spec = fuse(after)
    assert (spec.causal, spec.mask) == (False, "bool")
    data = {n: rng.standard_normal((2, 2, 5, 8)).astype(np.float32) for n in "qv"}
    data |= {"kt": rng.standard_normal((2, 2, 8, 5)).astype(np.float32)}
    data |= {"keep": np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)[:, None, None]}
    np.testing.assert_allclose(run(after, data)["y"], run(before, data)["y"], atol=1e-6)


def test_a_second_run_finds_nothing(graph):
    model = graph(Spelling("compare", "where").text())
    fuse(model)
    again = Flash().run(model, Context())
    assert (again.rewrites, again.refusals) == (0, ())


def test_an_unwanted_site_is_left_alone(graph):
    model = graph(Spelling("compare", "where").text())
    result = Flash().run(model, Context(wants=lambda site: False))
    assert result.rewrites == 0
    assert "Softmax" in ops(model)


def test_a_softmax_that_is_no_attention_is_no_site(graph):
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,8] x) => (float[b,8] y) { y = Softmax(x) }""")
    result = Flash().run(model, Context())
    assert (result.rewrites, result.refusals) == (0, ())
    assert result.notes == ("the graph has no attention",)


def test_a_softmax_over_the_vocabulary_is_no_site(graph):
    """Tied embeddings: the product with them is a projection, although they are transposed."""
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x) => (float[b,s,9] y, float[b,s,8] z)
    <float[9,8] table = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,
        28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,
        58,59,60,61,62,63,64,65,66,67,68,69,70,71}> {
        turned = Transpose<perm = [1, 0]>(table)
        logits = MatMul(x, turned)
        y = Softmax(logits)
        z = MatMul(y, table)
    }""")
    result = Flash().run(model, Context())
    assert (result.rewrites, result.refusals) == (0, ())


def refused(model: ir.Model) -> str:
    result = Flash().run(model, Context())
    assert result.rewrites == 0
    (refusal,) = result.refusals
    return refusal.reason


def test_refuses_when_the_probabilities_are_an_output(graph):
    text = Spelling("compare", "where").text()
    text = text.replace("(float[batch,seq,32] y)", "(float[batch,seq,32] y, float[b,4,s,t] soft)")
    text = text.replace("p = Identity(soft)", "").replace("MatMul(p, vr)", "MatMul(soft, vr)")
    assert "are an output of the graph" in refused(graph(text))


def test_refuses_when_the_probabilities_are_used_elsewhere(graph):
    text = Spelling("compare", "where").text().replace("=> (", "=> (float[b,4,s,t] other, ")
    text = text.replace("p = Identity(soft)", "p = Identity(soft)\nother = Neg(soft)")
    assert "used elsewhere too (MatMul, Neg); if they are to be returned, export" in refused(
        graph(text)
    )


def test_refuses_probabilities_that_go_elsewhere(graph):
    text = Spelling().text().replace("p = Identity(soft)", "p = Neg(soft)")
    assert refused(graph(text)) == "the probabilities go into 'Neg', not a product"


def test_refuses_an_operation_it_does_not_know(graph):
    text = Spelling().text().replace("capped = Identity(scores)", "capped = Sigmoid(scores)")
    assert refused(graph(text)) == "'Sigmoid' between the score product and the Softmax"


def test_refuses_scores_that_a_number_replaces_without_hiding_them(graph):
    text = Spelling("compare", "where").text().replace("value_float = -inf", "value_float = 0.0")
    assert "a Where puts something else in the place" in refused(graph(text))
    text = text.replace("Where(visible, capped, hidden)", "Where(visible, hidden, capped)")
    assert "cannot be followed" in refused(graph(text))


def test_refuses_sinks_by_name(graph):
    text = (
        Spelling()
        .text()
        .replace(
            "capped = Identity(scores)",
            """
        last = Constant<value_ints = [3]>()
        sink = ReduceMax(scores, last)
        wide = Concat<axis = -1>(scores, sink)
        capped = Identity(wide)
        """,
        )
    )
    text = text.replace(
        "p = Identity(soft)",
        """
        begin = Constant<value_ints = [0]>()
        until = Constant<value_ints = [-1]>()
        p = Slice(soft, begin, until, last)
        """,
    )
    assert "sinks" in refused(graph(text))


def test_refuses_scores_that_are_used_twice(graph):
    text = Spelling().text().replace("capped = Identity(scores)", "capped = Mul(scores, scores)")
    assert "scores" in refused(graph(text))


def test_heads_may_be_missing(graph, run, rng):
    """One head, no axis for it."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] q, float[b,8,s] k, float[b,s,8] v) => (float[b,s,8] y) {
        q2 = Neg(q)
        k2 = Neg(k)
        v2 = Neg(v)
        scores = MatMul(q2, k2)
        p = Softmax(scores)
        y = MatMul(p, v2)
    }"""
    before, after = graph(text), graph(text)
    fuse(after)
    shapes = {"q": (3, 5, 8), "k": (3, 8, 5), "v": (3, 5, 8)}
    data = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    np.testing.assert_allclose(run(after, data)["y"], run(before, data)["y"], atol=1e-5)


PAST = """<ir_version: 10, opset_import: ["": 23]>
agraph (float[b,2,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v, float[b,2,p,8] pk,
        float[b,2,p,8] pv) => (float[b,2,s,8] y, float[b,2,t,8] ok, float[b,2,t,8] ov) {
    y, ok, ov = Attention<is_causal = 1>(q, k, v, , pk, pv)
}"""


@pytest.mark.parametrize("past", [0, 3])
def test_a_cache_that_the_export_has_stays(past, graph, run, rng):
    before, after = graph(PAST), graph(PAST)
    _, spec = fuse(after)
    assert (spec.causal, spec.cache) == (True, "concat")
    counts = {"q": 4, "k": 4, "v": 4, "pk": past, "pv": past}
    data = {n: rng.standard_normal((2, 2, c, 8)).astype(np.float32) for n, c in counts.items()}
    expected, got = run(before, data), run(after, data)
    for name in ("y", "ok", "ov"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


def test_keys_that_are_outputs_stay_outputs(graph, run, rng):
    text = PAST.replace(", , pk, pv)", ")").replace("float[b,2,t,8] o", "float[b,2,s,8] o")
    text = text.replace(", float[b,2,p,8] pk,\n        float[b,2,p,8] pv", "")
    before, after = graph(text), graph(text)
    fuse(after)
    data = {n: rng.standard_normal((2, 2, 4, 8)).astype(np.float32) for n in "qkv"}
    expected, got = run(before, data), run(after, data)
    for name in ("y", "ok", "ov"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


def test_masks_cover_every_family_that_is_named():
    assert {s.mask for s in CAUSAL_SPELLINGS + OTHER_SPELLINGS} == set(MASKS)


TWO_SITES = """<ir_version: 10, opset_import: ["": 23]>
agraph (float[b,2,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v, float[b,2,s,8] other)
    => (float[b,2,s,8] y, float[b,2,s,8] z, float[b,2,s,s] scores) {
    y = Attention<is_causal = 1>(q, k, v)
    z, nothing, none, scores = Attention(other, other, other)
}"""


def test_fusing_only_some_is_an_error_that_says_which(graph):
    with pytest.raises(
        UnsupportedError,
        match=r"1 of 2 attention sites were fused, not z: the attention scores are used",
    ):
        Flash().run(graph(TWO_SITES), Context())


def test_fusing_only_some_can_be_accepted(graph):
    result = Flash(partial=True).run(graph(TWO_SITES), Context())
    assert result.sites == ("y",)
    assert [r.site for r in result.refusals] == ["z"]
