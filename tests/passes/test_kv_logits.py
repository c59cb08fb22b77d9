"""`kv:logits=last`: logits of each row's last real token, and nothing computed for the others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights import bake

from optc.api.registries import passes
from optc.core.context import Context
from optc.core.grammar import parse_passes
from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.passes.quant import Quant
from optc.rewrite.last_tokens import every_token
from optc.targets.evaluate import OrtEvaluator, open_model
from optc.targets.ort import Ort

VOCABULARY = 16
LAST = [KV(logits="last"), KV(logits="last", max=24)]
LAYOUTS = ["concat", "static"]
_FLOAT = ir.DataType.FLOAT

# What the decoder's `logits = MatMul(z, head)` is replaced by: how models end.
ENDS = {
    "product": "logits = MatMul(z, head)",
    "softcap": """
    cap = Constant<value_float = 3.0>()
    raw = MatMul(z, head)
    less = Div(raw, cap)
    bent = Tanh(less)
    logits = Mul(bent, cap)
    """,
    "feed-forward": """
    width_16 = Constant<value_ints = [16]>()
    ones = ConstantOfShape<value = float[1] {1.0}>(width_16)
    n1 = LayerNormalization(z, ones)
    up = MatMul(n1, wk)
    gate = Sigmoid(up)
    act = Mul(gate, up)
    down = MatMul(act, wv)
    z2 = Add(z, down)
    n2 = RMSNormalization(z2, ones)
    logits = MatMul(n2, head)
    """,
    "gemm on tokens laid flat": """
    flat_shape = Constant<value_ints = [-1, 16]>()
    flat = Reshape(z, flat_shape)
    up = Gemm(flat, wk)
    lead = Shape<start = 0, end = 2>(input_ids)
    width = Constant<value_ints = [16]>()
    back_shape = Concat<axis = 0>(lead, width)
    back = Reshape(up, back_shape)
    z2 = Add(z, back)
    logits = MatMul(z2, head)
    """,
    "padded vocabulary": """
    raw_head = Concat<axis = 1>(head, head)
    raw = MatMul(z, raw_head)
    whole = Constant<value_ints = [0, 0, 3]>()
    long = Constant<value_ints = [9223372036854775807, 9223372036854775807, 19]>()
    logits = Slice(raw, whole, long)
    """,
    "product as einsum": """
    logits = Einsum<equation = "bsh,hv->bsv">(z, head)
    """,
    "late positions of each row": """
    each = Expand(places_1s, sizes)
    behind = Constant<value_ints = [2]>()
    column = Unsqueeze(each, behind)
    late = Cast<to = 1>(column)
    z2 = Mul(z, late)
    logits = MatMul(z2, head)
    """,
    "late positions of all rows": """
    behind = Constant<value_ints = [2]>()
    column = Unsqueeze(places_1s, behind)
    late = Cast<to = 1>(column)
    z2 = Mul(z, late)
    logits = MatMul(z2, head)
    """,
    "late ones of each row": """
    ones = ConstantOfShape<value = float[1] {3.0}>(sizes)
    behind = Constant<value_ints = [2]>()
    column = Unsqueeze(ones, behind)
    z2 = Mul(z, column)
    logits = MatMul(z2, head)
    """,
}


def build(graph, end: str = "product") -> ir.Model:
    """The decoder with its weights baked in."""
    text = decoder("rotary").replace(ENDS["product"], ENDS.get(end, end))
    return bake(graph(text))


def with_cache(model: ir.Model, kv: KV) -> ir.Model:
    Flash().run(model, Context())
    kv.requires(model, Context())
    result = kv.run(model, Context())
    kv.ensures(model, result)
    assert result.rewrites == 1, result
    return model


def feed(run, model: ir.Model, tokens, lengths, new, caches):
    """One call; returns logits [B,1,V] and the caches to pass on."""
    data = {"input_ids": tokens, "cache_lengths": np.array(lengths, np.int64)}
    data["new_lengths"] = np.array(new, np.int64)
    out = run(model, complete_feeds(ports(model.graph.inputs), data | caches))
    kept = {c.past: out[c.present] for c in cache_ports(ports(model.graph.inputs))}
    return out["logits"], kept


@pytest.mark.parametrize("kv", LAST, ids=LAYOUTS)
@pytest.mark.parametrize("end", ENDS)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(chunks=st.lists(st.tuples(*[st.integers(1, 5)] * 3), min_size=1, max_size=4))
def test_each_row_gets_the_logits_of_its_last_real_token(end, kv, chunks, graph, run):
    """Rows take different numbers of tokens in each call, padded on the right."""
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (3, 24))
    whole = run(build(graph, end), {"input_ids": tokens})["logits"]
    model = with_cache(build(graph, end), kv)
    lengths, caches = np.zeros(3, np.int64), {}
    for counts in map(np.array, chunks):
        new = np.zeros((3, max(counts)), np.int64)
        for row, (start, count) in enumerate(zip(lengths, counts, strict=True)):
            new[row, :count] = tokens[row, start : start + count]
        logits, caches = feed(run, model, new, lengths, counts, caches)
        lengths = lengths + counts
        assert logits.shape == (3, 1, VOCABULARY)
        np.testing.assert_allclose(logits[:, 0], whole[np.arange(3), lengths - 1], atol=2e-5)


@pytest.mark.parametrize(
    ("end", "once"),
    [
        ("product", {"logits"}),
        ("softcap", {"raw", "less", "bent", "logits"}),
        ("feed-forward", {"n1", "up", "act", "down", "z2", "n2", "logits"}),
        ("gemm on tokens laid flat", {"up", "z2", "logits"}),
        ("late positions of each row", {"z2", "logits"}),
        ("late positions of all rows", {"z2", "logits"}),
    ],
)
def test_what_only_the_logits_need_is_computed_for_one_token(end, once, graph):
    """Six tokens come in; the values named have the size of one."""
    model = with_cache(build(graph, end), KV(logits="last"))
    tokens = np.arange(12).reshape(2, 6)
    (found,) = OrtEvaluator()(model, [{"input_ids": tokens}], fetch=sorted(once))
    assert {name: array.size // array.shape[-1] for name, array in found.items()} == dict.fromkeys(
        once, 2
    )


def test_every_key_and_value_is_still_computed(graph, run):
    """The cache holds all tokens, the padding's too, whatever the logits are asked for."""
    tokens = np.arange(12).reshape(2, 6)
    found = []
    for kv in (KV(), KV(logits="last")):
        model = with_cache(build(graph, "feed-forward"), kv)
        out = run(model, complete_feeds(ports(model.graph.inputs), {"input_ids": tokens}))
        found.append(out["present.0.key"])
    np.testing.assert_array_equal(*found)


def test_the_interface_says_so(graph):
    model = with_cache(build(graph), KV(logits="last"))
    inputs = {port.name: port for port in ports(model.graph.inputs)}
    assert list(inputs)[:3] == ["input_ids", "cache_lengths", "new_lengths"]
    assert (inputs["new_lengths"].dtype, inputs["new_lengths"].shape) == ("int64", ("batch",))
    assert ports(model.graph.outputs)[0].shape == ("batch", 1, VOCABULARY)


def test_a_feed_that_says_nothing_means_the_last_column():
    given = ports([ir.val("new_lengths", ir.DataType.INT64, ["batch"])])
    feeds = complete_feeds(given, {"input_ids": np.zeros((2, 5), np.int64)})
    assert feeds["new_lengths"].tolist() == [5, 5]


def test_all_logits_are_what_is_asked_for_by_default(graph):
    model = with_cache(build(graph), KV())
    assert "new_lengths" not in {value.name for value in model.graph.inputs}


def test_a_second_run_finds_nothing(graph):
    model = with_cache(build(graph), KV(logits="last"))
    before = [node.op_type for node in model.graph]
    result = KV(logits="last").run(model, Context())
    assert (result.rewrites, result.notes) == (0, ("the graph has a cache already",))
    assert [node.op_type for node in model.graph] == before


# What `quant` takes; a weight that is put together, and Einsum, it leaves alone.
SITES = {"softcap": {"raw"}, "padded vocabulary": set(), "product as einsum": set()}
REFUSED = {
    "a product turned around": (
        "turned = Transpose<perm = [0, 2, 1]>(z)\nproduct = MatMul(head, turned)\n"
        "logits = Transpose<perm = [0, 2, 1]>(product)",
        "what comes before 'logits', a Transpose, is not known to act token by token",
    ),
    "an einsum over tokens": (
        'logits = Einsum<equation = "bsh,bth->bsh">(z, z)',
        "what comes before 'logits', a Einsum, is not known to act token by token",
    ),
    "a product behind which tokens are summed": (
        "raw = MatMul(z, head)\nsummed = CumSum(raw, one)\nlogits = Tanh(summed)",
        "no product that only 'logits' needs was found: 'summed', a CumSum, is not known to act",
    ),
    "no product alone": ("logits = Softmax<axis = -1>(z)", "no product that only 'logits' needs"),
    "not by token": (
        "end = Constant<value_ints = [16]>()\nzero_1 = Constant<value_ints = [0]>()\n"
        "first_16 = Slice(z, zero_1, end, first)\nlogits = MatMul(first_16, head)",
        "not one row for each token",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_down_is_refused_whole(case, graph):
    end, reason = REFUSED[case]
    model = build(graph, end)
    Flash().run(model, Context())
    before = [node.op_type for node in model.graph]
    result = KV(logits="last").run(model, Context())
    assert result.rewrites == 0
    refusal = next(r for r in result.refusals if r.site == "logits")
    assert reason in refusal.reason
    assert [node.op_type for node in model.graph] == before


def test_an_output_beside_the_logits_keeps_all_its_tokens(graph, run):
    """`z` leaves the graph, so it is computed for all tokens; the product after it is not."""
    text = "n = Tanh(z)\nlogits = MatMul(n, head)"
    whole, model = build(graph, text), build(graph, text)
    for m in (whole, model):
        value = next(out for node in m.graph for out in node.outputs if out.name == "z")
        m.graph.outputs.append(value)
    with_cache(model, KV(logits="last"))
    tokens = np.arange(12).reshape(2, 6)
    expected = run(whole, {"input_ids": tokens})
    out = run(model, complete_feeds(ports(model.graph.inputs), {"input_ids": tokens}))
    np.testing.assert_allclose(out["z"], expected["z"], atol=2e-5)
    np.testing.assert_allclose(out["logits"], expected["logits"][:, -1:], atol=2e-5)


@pytest.mark.parametrize("end", ENDS)
def test_every_token_gives_all_logits_back(end, graph, run):
    tokens = np.arange(12).reshape(2, 6)
    whole = run(build(graph, end), {"input_ids": tokens})["logits"]
    model = with_cache(build(graph, end), KV(logits="last"))
    again = every_token(model)
    out = run(again, complete_feeds(ports(again.graph.inputs), {"input_ids": tokens}))
    np.testing.assert_allclose(out["logits"], whole, atol=2e-5)
    assert "GatherND" in {node.op_type for node in model.graph}


@pytest.mark.parametrize("options", ["", ":max=24"])
@pytest.mark.parametrize("end", ENDS)
def test_quant_and_the_target_take_it(end, options, graph):
    """Calibration sees all tokens; the product with the vocabulary is a site as before."""
    (kv,) = parse_passes(f"kv:logits=last{options}", passes())
    model = with_cache(build(graph, end), kv)
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (4, 2, 12))
    context = Context(OrtEvaluator(), [{"input_ids": part} for part in tokens])
    quant = Quant(max_drift=1.0)
    with open_model(model) as session:
        wanted = session.run(complete_feeds(session.inputs, {"input_ids": tokens[0]}))["logits"]
    result = quant.run(model, context)
    quant.ensures(model, result)
    assert set(result.sites) >= SITES.get(end, {"logits"})
    with open_model(Ort().lower(model)) as session:
        got = session.run(complete_feeds(session.inputs, {"input_ids": tokens[0]}))["logits"]
    assert got.shape == wanted.shape == (2, 1, VOCABULARY)
    assert np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("end", ENDS)
def test_any_value_of_every_token_can_be_fetched(end, graph):
    """Calibration asks for values inside; a typed output without a shape is not valid ONNX."""
    whole = every_token(with_cache(build(graph, end), KV(logits="last")))
    names = [str(out.name) for node in whole.graph for out in node.outputs if out.dtype == _FLOAT]
    feeds = {"input_ids": np.arange(12).reshape(2, 6)}
    for name in names:
        (found,) = OrtEvaluator()(whole, [feeds], fetch=[name])
        assert found[name].size
