"""`kv` refuses what looks at other tokens besides attention, and takes what does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import decoder
from test_kv import VOCABULARY, feed
from weights import bake

from optc.core.context import Context
from optc.passes.flash import Flash
from optc.passes.kv import KV

FLAT = """
    flat_sizes = Constant<value_ints = [-1, 16]>()
    flat = Reshape(z, flat_sizes)
    z_sizes = Shape(z)
"""
BACK = "\nz2 = Reshape(made, z_sizes)"
REFUSED = {
    "Slice": """
        end = Constant<value_ints = [-1]>()
        most = Constant<value_ints = [9223372036854775807]>()
        newest = Slice(z, end, most, second)
        z2 = Add(z, newest)
    """,
    "CumSum": FLAT + "made = CumSum(flat, zero)" + BACK,
    "Gemm": FLAT + "squares = Gemm<transA = 1>(flat, flat)\nz2 = MatMul(z, squares)",
    "DynamicQuantizeLinear": """
        quantized, step, middle = DynamicQuantizeLinear(z)
        z2 = DequantizeLinear(quantized, step, middle)
    """,
    "Softmax": FLAT + "made = Softmax<axis = 0>(flat)" + BACK,
}
TAKEN = {
    "flattened": FLAT + "made = Gemm<transB = 1>(flat, wv)" + BACK,
    "experts": FLAT
    + """
        scores = MatMul(flat, head)
        shares = Softmax<axis = -1>(scores)
        share, chosen = TopK<axis = -1>(shares, second)
        expert = Squeeze(chosen, second)
        row = Gather(places, expert)
        weighed = Mul(row, share)
        made = Add(weighed, flat)
    """
    + BACK,
    "groups of channels": FLAT
    + """
        one_each = Constant<value = float[1] {1.0}>()
        sixteen = Constant<value_ints = [16]>()
        ones = Expand(one_each, sixteen)
        ends = Constant<value_ints = [2]>()
        column = Unsqueeze(flat, ends)
        groups = GroupNormalization<num_groups = 1>(column, ones, ones)
        made = Squeeze(groups, ends)
    """
    + BACK,
}


def extended(lines: str) -> str:
    """A decoder with z2, computed from z by these lines, in front of the logits."""
    last = "logits = MatMul(z, head)"
    text = decoder("rotary").replace(last, lines + "\n" + last.replace("z,", "z2,"))
    return text.replace('["": 23]', '["": 23, "com.microsoft": 1, "com.acme": 1]')


def flashed(graph, text: str) -> ir.Model:
    model = bake(graph(text))
    Flash().run(model, Context())
    return model


@pytest.mark.parametrize("op", REFUSED)
def test_what_combines_tokens_is_refused_by_name(op, graph, run, rng):
    model = flashed(graph, extended(REFUSED[op]))
    tokens = rng.integers(0, VOCABULARY, (2, 9))
    whole = run(model, {"input_ids": tokens})["logits"]
    fewer = run(model, {"input_ids": tokens[:, :4]})["logits"]
    alone = run(model, {"input_ids": tokens[1:]})["logits"]
    assert max(np.abs(whole[:, :4] - fewer).max(), np.abs(whole[1:] - alone).max()) > 1e-3
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = KV().run(model, Context())
    assert [r.reason for r in result.refusals] == [
        f"this {op} combines tokens, which a cache hides"
    ]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("lines", TAKEN.values(), ids=TAKEN)
def test_what_keeps_them_apart_is_cached(lines, graph, run, rng):
    tokens = rng.integers(0, VOCABULARY, (2, 9))
    whole = run(flashed(graph, extended(lines)), {"input_ids": tokens})["logits"]
    model = flashed(graph, extended(lines))
    assert KV().run(model, Context()).rewrites == 1
    caches, parts = {}, []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        logits, caches = feed(run, model, tokens[:, start:stop], [start, start], caches)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-5)


def test_an_operator_that_nobody_here_knows_is_refused_by_its_full_name(graph):
    model = flashed(graph, extended("z2 = com.acme.Blend(z)"))
    (refusal,) = KV().run(model, Context()).refusals
    assert refusal.reason.startswith(
        "this com.acme.Blend may combine tokens, which a cache hides: "
    )
