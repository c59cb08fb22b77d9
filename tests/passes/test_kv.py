"""`kv`: one graph for prefill, chunks, decode, ragged batches and rollback; and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights import bake

from optc.core.context import Context
from optc.core.errors import UnsupportedError, UsageError
from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.passes.flash import Flash
from optc.passes.kv import KV

VOCABULARY = 16


def build(graph, positions: str, **shape) -> ir.Model:
    """The decoder with its weights baked in."""
    return bake(graph(decoder(positions, **shape)))


def with_cache(graph, positions: str, kv: KV) -> ir.Model:
    model = build(graph, positions)
    Flash().run(model, Context())
    kv.requires(model, Context())
    result = kv.run(model, Context())
    kv.ensures(model, result)
    assert result.rewrites == 1, result
    return model


def feed(run, model: ir.Model, tokens, lengths, caches):
    """One call; returns logits and the caches to pass on."""
    data = {"input_ids": tokens, "cache_lengths": np.array(lengths, np.int64)} | caches
    out = run(model, complete_feeds(ports(model.graph.inputs), data))
    kept = {c.past: out[c.present] for c in cache_ports(ports(model.graph.inputs))}
    return out["logits"], kept


LAYOUTS = [KV(), KV(max=24)]
CACHEABLE = ["none", "learned", "rank_1", "rotary"]


@pytest.mark.parametrize("kv", LAYOUTS, ids=["concat", "static"])
@pytest.mark.parametrize("positions", CACHEABLE)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(chunks=st.lists(st.integers(1, 7), min_size=2, max_size=5))
def test_any_chunking_gives_what_one_call_gives(positions, kv, chunks, graph, run):
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (2, min(sum(chunks), 24)))
    whole = run(build(graph, positions), {"input_ids": tokens})["logits"]
    model = with_cache(graph, positions, kv)
    parts, caches, done = [], {}, 0
    for chunk in chunks:
        new = tokens[:, done : done + chunk]
        if not new.size:
            break
        logits, caches = feed(run, model, new, [done, done], caches)
        parts.append(logits)
        done += new.shape[1]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-5)


@pytest.mark.parametrize("kv", LAYOUTS, ids=["concat", "static"])
@pytest.mark.parametrize("positions", CACHEABLE)
def test_rows_of_different_lengths_go_together(positions, kv, graph, run, rng):
    tokens = rng.integers(0, VOCABULARY, (3, 12))
    whole = run(build(graph, positions), {"input_ids": tokens})["logits"]
    model = with_cache(graph, positions, kv)
    lengths = np.array([7, 2, 4])
    first, caches = feed(run, model, tokens[:, :7], [0, 0, 0], {})
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(first[row, :length], whole[row, :length], atol=2e-5)
    for step in (1, 3, 1):
        new = np.stack([tokens[r, n : n + step] for r, n in enumerate(lengths)])
        logits, caches = feed(run, model, new, lengths, caches)
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(logits[row], whole[row, n : n + step], atol=2e-5)
        lengths = lengths + step


@pytest.mark.parametrize("kv", LAYOUTS, ids=["concat", "static"])
def test_a_smaller_length_takes_tokens_back(kv, graph, run, rng):
    tokens, other = rng.integers(0, VOCABULARY, (2, 1, 10))
    model = with_cache(graph, "rotary", kv)
    _, caches = feed(run, model, tokens, [0], {})
    again, _ = feed(run, model, other[:, 4:], [4], caches)
    fresh = np.concatenate([tokens[:, :4], other[:, 4:]], 1)
    whole = run(build(graph, "rotary"), {"input_ids": fresh})["logits"]
    np.testing.assert_allclose(again, whole[:, 4:], atol=2e-5)


def test_the_interface_is_the_documented_one(graph):
    model = with_cache(graph, "rotary", KV(max=24))
    inputs = {p.name: p for p in ports(model.graph.inputs)}
    assert list(inputs) == [
        "input_ids",
        "cache_lengths",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert inputs["cache_lengths"].dtype == "int64"
    assert inputs["past_key_values.0.key"].shape == ("batch", 2, 24, 8)
    outputs = [p.name for p in ports(model.graph.outputs)]
    assert outputs == ["logits", "present.0.key", "present.0.value"]


def test_a_second_run_finds_nothing(graph):
    model = with_cache(graph, "rotary", KV())
    KV().requires(model, Context())
    result = KV().run(model, Context())
    assert (result.rewrites, result.notes) == (0, ("the graph has a cache already",))


def test_all_sites_or_none(graph):
    model = build(graph, "rotary")
    Flash().run(model, Context())
    result = KV().run(model, Context(wants=lambda site: False))
    assert result.rewrites == 0
    assert "wrong" in result.notes[0]


def test_needs_canonical_attention(graph):
    with pytest.raises(UnsupportedError, match="run 'flash' too"):
        KV().requires(build(graph, "rotary"), Context())


def test_needs_dynamic_sizes(graph):
    model = build(graph, "none", seq=8)
    Flash().run(model, Context())
    KV().requires(model, Context())
    with pytest.raises(UnsupportedError, match="dynamic batch and sequence"):
        KV().run(model, Context())


def test_refuses_attention_that_is_not_causal(graph):
    text = decoder("none").replace("is_causal = 1", "is_causal = 0")
    model = graph(text)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.zeros(tuple(value.shape), np.float32), name=value.name)
        model.graph.register_initializer(value)
    Flash().run(model, Context())
    result = KV().run(model, Context())
    assert "not causal" in result.refusals[0].reason


@pytest.mark.parametrize("options", [{"layout": "static"}, {"layout": "concat", "max": 8}])
def test_options_that_contradict_each_other(options):
    with pytest.raises(UsageError):
        KV(**options)
