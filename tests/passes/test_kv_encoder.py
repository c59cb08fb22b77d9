"""`kv` on encoder-decoders: what attention across sees is computed once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from encoder_graphs import VOCABULARY, encoder_decoder, fused, with_cache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optc.core.context import Context
from optc.core.errors import UnsupportedError
from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.ir.verify import verify_model
from optc.passes.kv import KV

LAYOUTS = [KV(), KV(max=24)]


@pytest.fixture
def feeds(rng):
    """Three texts of 9 words and what is said of them, 12 words; the last text has 2 words less."""
    mask = np.ones((3, 9), np.int64)
    mask[2, 7:] = 0
    return {
        "input_ids": rng.integers(0, VOCABULARY, (3, 9)),
        "decoder_input_ids": rng.integers(0, VOCABULARY, (3, 12)),
        "attention_mask": mask,
    }


def given_to(model: ir.Model, feeds):
    names = {value.name for value in model.graph.inputs}
    return {name: array for name, array in feeds.items() if name in names}


def call(run, model: ir.Model, feeds, tokens, lengths, caches):
    """One call; returns logits and the caches to pass on."""
    inputs = ports(model.graph.inputs)
    data = given_to(model, feeds) | {"decoder_input_ids": tokens} | caches
    data["cache_lengths"] = np.array(lengths, np.int64)
    out = run(model, complete_feeds(inputs, data))
    return out["logits"], {c.past: out[c.present] for c in cache_ports(inputs)}


@pytest.mark.parametrize("kv", LAYOUTS, ids=["concat", "static"])
@pytest.mark.parametrize("mask", [False, True], ids=["plain", "padded"])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(chunks=st.lists(st.integers(1, 7), min_size=2, max_size=5))
def test_any_chunking_gives_what_one_call_gives(mask, kv, chunks, graph, run, feeds):
    text = encoder_decoder(mask=mask)
    plain, model = fused(graph, text), with_cache(graph, text, kv)
    whole = run(plain, given_to(plain, feeds))["logits"]
    parts, caches, done = [], {}, 0
    for chunk in chunks:
        new = feeds["decoder_input_ids"][:, done : done + chunk]
        if not new.size:
            break
        logits, caches = call(run, model, feeds, new, [done] * 3, caches)
        parts.append(logits)
        done += new.shape[1]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole[:, :done], atol=2e-5)


def test_positions_that_meet_a_companion_first_follow_the_cache(graph, run, feeds, rng):
    """Kinds of tokens get positions before the tokens themselves come in."""
    ids = "int64[batch,target] decoder_input_ids"
    text = encoder_decoder().replace(ids, f"{ids}, int64[batch,target] decoder_kinds")
    text = text.replace(
        "text = Add(text_words, text_here)",
        """kinds = Gather(table, decoder_kinds)
    placed = Add(kinds, text_here)
    text = Add(text_words, placed)""",
    )
    kinds = rng.integers(0, VOCABULARY, (3, 12))
    plain, model = fused(graph, text), with_cache(graph, text)
    whole = run(plain, given_to(plain, feeds | {"decoder_kinds": kinds}))["logits"]
    caches = {}
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        data = feeds | {"decoder_kinds": kinds[:, part]}
        new = feeds["decoder_input_ids"][:, part]
        logits, caches = call(run, model, data, new, [part.start] * 3, caches)
        np.testing.assert_allclose(logits, whole[:, part], atol=2e-5)


@pytest.mark.parametrize("kv", LAYOUTS, ids=["concat", "static"])
def test_rows_of_different_lengths_go_together_and_roll_back(kv, graph, run, feeds):
    text = encoder_decoder(mask=True)
    plain, model = fused(graph, text), with_cache(graph, text, kv)
    tokens = feeds["decoder_input_ids"]
    whole = run(plain, given_to(plain, feeds))["logits"]
    _, caches = call(run, model, feeds, tokens[:, :7], [0, 0, 0], {})
    for lengths in ([7, 2, 4], [8, 3, 5], [1, 6, 2]):
        new = np.stack([tokens[r, n : n + 1] for r, n in enumerate(lengths)])
        logits, caches = call(run, model, feeds, new, lengths, caches)
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(logits[row], whole[row, n : n + 1], atol=2e-5)


def test_the_encoder_runs_where_its_cache_is_empty_and_only_there(graph, run, feeds, rng):
    model = with_cache(graph, encoder_decoder())
    tokens = feeds["decoder_input_ids"]
    _, caches = call(run, model, feeds, tokens[:, :4], [0] * 3, {})
    other = feeds | {"input_ids": rng.integers(0, VOCABULARY, (3, 9))}
    kept, after = call(run, model, feeds, tokens[:, 4:], [4] * 3, caches)
    skipped, _ = call(run, model, other, tokens[:, 4:], [4] * 3, caches)
    np.testing.assert_array_equal(skipped, kept)
    crossing = [name for name in caches if ".encoder." in name]
    assert len(crossing) == 2
    for name in crossing:
        np.testing.assert_array_equal(after[name], caches[name])
    own = {name: array for name, array in caches.items() if name not in crossing}
    encoded, _ = call(run, model, other, tokens[:, 4:], [4] * 3, own)
    assert np.abs(encoded - kept).max() > 1e-2


def test_the_encoder_and_all_its_products_are_in_one_branch(graph):
    model = with_cache(graph, encoder_decoder(mask=True))
    verify_model(model)
    (node,) = [n for n in model.graph if n.op_type == "If"]
    inside = [n.op_type for n in node.attributes["then_branch"].as_graph()]
    outside = [n.op_type for n in model.graph]
    # projections to q, k, v across: two of the three are of the encoder
    assert (inside.count("MatMul"), outside.count("MatMul")) == (5, 5)
    assert (inside.count("FlashAttention"), outside.count("FlashAttention")) == (1, 2)
    assert [n.op_type for n in node.attributes["else_branch"].as_graph()] == ["Identity"] * 2


def test_the_interface_is_the_documented_one(graph):
    model = with_cache(graph, encoder_decoder(), KV(max=24))
    inputs = {p.name: p.shape for p in ports(model.graph.inputs)}
    shapes = {"decoder": ("batch", 2, 24, 8), "encoder": ("batch", 2, "past_encoder_sequence", 8)}
    assert inputs == {
        "input_ids": ("batch", "length"),
        "decoder_input_ids": ("batch", "target"),
        "cache_lengths": ("batch",),
    } | {f"past_key_values.0.{s}.{part}": shapes[s] for s in shapes for part in ("key", "value")}
    assert [p.name for p in ports(model.graph.outputs)] == [
        "logits",
        "present.0.decoder.key",
        "present.0.decoder.value",
        "present.0.encoder.key",
        "present.0.encoder.value",
    ]


def test_a_second_run_finds_nothing(graph):
    model = with_cache(graph, encoder_decoder())
    before = [n.op_type for n in model.graph.all_nodes()]
    KV().requires(model, Context())
    result = KV().run(model, Context())
    assert (result.rewrites, result.notes) == (0, ("the graph has a cache already",))
    assert [n.op_type for n in model.graph.all_nodes()] == before


def reasons(model: ir.Model) -> list[str]:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    KV().requires(model, Context())
    result = KV().run(model, Context())
    assert result.rewrites == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    return [refusal.reason for refusal in result.refusals]


def test_refuses_a_decoder_that_uses_more_of_the_encoder(graph):
    pooled = """
    pooled_axis = Constant<value_ints = [1]>()
    pooled = ReduceMean<keepdims = 1>(memory, pooled_axis)
    bent = MatMul(pooled, wse)
    z0 = Add(x3, y3)
    z = Add(z0, bent)
    """.replace("wse", "weq")
    found = reasons(fused(graph, encoder_decoder(more=pooled)))
    assert set(found) == {
        "the decoder uses it of the encoder besides keys and values, at every call"
    }


def test_refuses_attention_across_that_hides_by_distance(graph):
    model = fused(graph, encoder_decoder())
    across = next(n for n in model.graph if n.outputs[0].name == "os")
    across.attributes["window"] = ir.AttrInt64("window", 4)
    assert reasons(model) == ["it hides keys of another input by their distance"]


NEAR = """
    second = Constant<value_ints = [1]>()
    rows = Unsqueeze(text_range, second)
    counted = Mul(rows, one)
    ahead = Sub(source_range, counted)
    reach = Constant<value_int = 2>()
    near = LessOrEqual(ahead, reach)
"""


def test_refuses_a_mask_across_that_goes_by_the_positions_of_the_tokens(graph):
    (reason,) = reasons(fused(graph, encoder_decoder(across=("near", NEAR))))
    assert reason == "its mask depends on the positions of the tokens, or cannot be evaluated"


def test_a_mask_across_that_is_the_same_for_all_tokens_stays(graph, run, feeds):
    text = encoder_decoder(across=("near", NEAR.replace("Mul(rows, one)", "Mul(rows, zero)")))
    plain, model = fused(graph, text), with_cache(graph, text)
    whole = run(plain, given_to(plain, feeds))["logits"]
    caches = {}
    for at in range(4):
        new = feeds["decoder_input_ids"][:, at : at + 1]
        logits, caches = call(run, model, feeds, new, [at] * 3, caches)
        np.testing.assert_allclose(logits, whole[:, at : at + 1], atol=2e-5)


def test_refuses_an_encoder_whose_axis_has_the_name_of_the_tokens_axis(graph):
    (reason,) = reasons(fused(graph, encoder_decoder(target="length")))
    assert reason == "its keys are as many as there are tokens, or an axis of theirs has that name"


def test_says_which_input_it_looked_for(graph):
    text = encoder_decoder().replace("decoder_input_ids", "said")
    with pytest.raises(
        UnsupportedError, match=r"named 'decoder_input_ids' or 'input_ids' \(but said\)"
    ):
        KV().requires(fused(graph, text), Context())
