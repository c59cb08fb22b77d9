"""`kv` on decoders that look for padding among their tokens: lengths say where it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import decoder
from test_kv import VOCABULARY, feed

from optc.core.context import Context
from optc.core.errors import UnsupportedError, UsageError
from optc.ir.interface import PADDING_IDS
from optc.ir.reference import Reference, Sample
from optc.parity.compare import compare
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.runtime.batching import Batcher
from optc.runtime.generate import generate
from optc.runtime.request import Request
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort

PLACES = "here = Gather(places, places_1s)"
COUNTED = """
    is_padding = Equal(input_ids, zero)
    is_word = Not(is_padding)
    ones = Cast<to = 7>(is_word)
    counted = CumSum(ones, one)
    at = Mul(counted, ones)
    here = Gather(places, at)
"""
PARTS = """
    three = Constant<value_int = 3>()
    starts = Equal(input_ids, three)
    starts_0 = Cast<to = 7>(starts)
    part = CumSum(starts_0, one)
    here = Gather(places, part)
"""
CHOSEN = """
    three = Constant<value_int = 3>()
    chosen = Equal(input_ids, three)
    column = Constant<value_ints = [2]>()
    chosen_column = Unsqueeze(chosen, column)
    there = Gather(places, places_1s)
    nothing = Sub(there, there)
    here = Where(chosen_column, nothing, there)
"""
HIDDEN = """
    is_padding = Equal(input_ids, zero)
    is_word = Not(is_padding)
    middle = Constant<value_ints = [1, 2]>()
    seen = Unsqueeze(is_word, middle)
"""
ATTENDED = "o = Attention<is_causal = 1>(q, k, v)"


def text(places: str = PLACES, attended: str = ATTENDED) -> str:
    return decoder("learned").replace(PLACES, places).replace(ATTENDED, attended)


def flashed(graph, written: str) -> ir.Model:
    rng = np.random.default_rng(1)
    model = graph(written)
    for value in list(model.graph.inputs)[1:]:
        array = rng.standard_normal(tuple(value.shape)).astype(np.float32) / 2
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    Flash().run(model, Context())
    return model


HIDING = text(HIDDEN + PLACES, "o = Attention<is_causal = 1>(q, k, v, seen)")


@pytest.mark.parametrize("written", [text(COUNTED), HIDING], ids=["positions", "mask"])
def test_padding_by_its_id_is_told_by_lengths(written, graph, run, rng):
    tokens = rng.integers(1, VOCABULARY, (2, 10))
    whole = run(flashed(graph, written), {"input_ids": tokens})["logits"]
    model = flashed(graph, written)
    result = KV().run(model, Context())
    assert result.rewrites == 1, result
    assert "token 0 is taken for padding, at the end of rows" in result.notes
    prompts = tokens[:, :6].copy()
    prompts[1, 3:] = 0  # padding
    first, caches = feed(run, model, prompts, [0, 0], {})
    np.testing.assert_allclose(first[0], whole[0, :6], atol=2e-5)
    np.testing.assert_allclose(first[1, :3], whole[1, :3], atol=2e-5)
    for lengths in ([6, 3], [7, 4], [8, 5]):
        new = np.stack([tokens[row, n : n + 1] for row, n in enumerate(lengths)])
        logits, caches = feed(run, model, new, lengths, caches)
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(logits[row], whole[row, n : n + 1], atol=2e-5)


def test_a_token_that_starts_a_part_of_the_text_is_no_padding(graph):
    model = flashed(graph, text(PARTS))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = KV().run(model, Context())
    assert [r.reason for r in result.refusals] == [
        "this CumSum combines tokens, which a cache hides"
    ]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_token_that_selects_data_is_no_padding(graph, run, rng):
    tokens = rng.integers(0, VOCABULARY, (1, 10))
    tokens[0, 2:8:3] = 3
    written = text(CHOSEN)
    whole = run(flashed(graph, written), {"input_ids": tokens})["logits"]
    model = flashed(graph, written)
    result = KV().run(model, Context())
    assert result.rewrites == 1, result
    assert not any("padding" in note for note in result.notes)
    caches, parts = {}, []
    for at in range(10):
        logits, caches = feed(run, model, tokens[:, at : at + 1], [at], caches)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-5)


@pytest.fixture(scope="module")
def hiding(graph):
    """A session of the graph with a cache, as it is built."""
    model = flashed(graph, HIDING)
    KV().run(model, Context())
    with open_model(Ort().lower(model)) as session:
        yield session


def before_padding(graph, run) -> list[int]:
    """A prompt that the model goes on with token 0 after."""
    firsts, seconds = np.meshgrid(np.arange(1, VOCABULARY), np.arange(1, VOCABULARY))
    prompts = np.stack([firsts.reshape(-1), seconds.reshape(-1)], 1)
    logits = run(flashed(graph, HIDING), {"input_ids": prompts})["logits"]
    return prompts[np.flatnonzero(logits[:, -1].argmax(-1) == 0)[0]].tolist()


def finish(batcher: Batcher) -> None:
    while not batcher.idle:
        batcher.step()


def test_a_prompt_with_padding_inside_is_refused_by_name(hiding):
    problem = "prompt 1: token 0 at position 2 is what this model takes for padding"
    with pytest.raises(UsageError, match=problem):
        generate(hiding, [[3, 4, 5], [1, 2, 0, 4]], max_new_tokens=2)
    with pytest.raises(UsageError, match="token 0 at position 0"):
        Batcher(hiding, slots=2, max_tokens=20).submit(Request((0, 3), 2))


def test_a_row_does_not_go_on_behind_padding_that_the_model_chose(hiding, graph, run):
    prompt = before_padding(graph, run)
    with pytest.raises(UnsupportedError, match="the model chose token 0, which it takes for pad"):
        generate(hiding, [prompt], max_new_tokens=2)
    assert generate(hiding, [prompt], max_new_tokens=1).tokens == ((0,),)
    assert generate(hiding, [prompt], max_new_tokens=2, eos=[0]).tokens == ((0,),)


def test_such_a_row_ends_alone_in_a_batch(hiding, graph, run):
    batcher = Batcher(hiding, slots=2, max_tokens=20)
    bad = batcher.submit(Request(tuple(before_padding(graph, run)), 3))
    good = batcher.submit(Request((1, 2, 3), 1))
    with pytest.raises(UnsupportedError, match="token 0"):
        finish(batcher)
    finish(batcher)
    assert isinstance(bad.error, UnsupportedError)
    assert (good.error, len(good.tokens)) == (None, 1)


def test_samples_with_padding_inside_are_no_evidence(hiding, graph, run, rng):
    plain = flashed(graph, HIDING)
    tokens = rng.integers(1, VOCABULARY, (2, 8))
    spoilt = tokens.copy()
    spoilt[1, 4] = 0
    samples = tuple(
        Sample({"input_ids": ids}, {"logits": run(plain, {"input_ids": ids})["logits"]})
        for ids in (spoilt, tokens)
    )
    metrics = compare(hiding, Reference("graph", samples))
    assert metrics.max_abs < 2e-5
    assert metrics.notes == (
        "1 of 2 samples left out: token 0 is in them, which the graph takes for padding",
    )


def test_the_ids_are_noted_only_where_the_graph_looks_for_them(graph):
    model = flashed(graph, text())
    model.metadata_props[PADDING_IDS] = "7"
    KV().run(model, Context())
    assert PADDING_IDS not in model.metadata_props


def test_a_refusal_leaves_the_note_as_it_was(graph):
    model = flashed(graph, text(HIDDEN + PARTS, "o = Attention<is_causal = 1>(q, k, v, seen)"))
    assert KV().run(model, Context()).refusals
    assert PADDING_IDS not in model.metadata_props
