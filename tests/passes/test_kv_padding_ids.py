"""`kv` on decoders that look for padding among their tokens: lengths say where it is."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import decoder
from test_kv import VOCABULARY, feed
from weights import bake

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
ADDED = (
    HIDDEN
    + """
    nothing = Constant<value_float = 0.0>()
    lowest = Constant<value_float = -3.4028234663852886e38>()
    added = Where(seen, nothing, lowest)
"""
)
MARKS = """
    five = Constant<value_int = 5>()
    marks = Equal(input_ids, five)
    of_keys = Constant<value_ints = [1, 2]>()
    of_queries = Constant<value_ints = [1, 3]>()
"""
NO_PADDING = {
    "documents, blocks on the diagonal": """
    ends = Cast<to = 7>(marks)
    document = CumSum(ends, one)
    here_document = Unsqueeze(document, of_queries)
    there_document = Unsqueeze(document, of_keys)
    seen = Equal(here_document, there_document)
    """,
    "queries that see themselves only": """
    open = Not(marks)
    open_query = Unsqueeze(open, of_queries)
    row = Unsqueeze(range, second)
    column = Unsqueeze(range, first)
    itself = Equal(row, column)
    seen = Or(open_query, itself)
    """,
    "keys that count for more": """
    number = Cast<to = 1>(marks)
    seen = Unsqueeze(number, of_keys)
    """,
    "what comes after": """
    ends = Cast<to = 7>(marks)
    document = CumSum(ends, one)
    in_first = Equal(document, zero)
    seen = Unsqueeze(in_first, of_keys)
    """,
    "all but": """
    seen = Unsqueeze(marks, of_keys)
    """,
}
ATTENDED = "o = Attention<is_causal = 1>(q, k, v)"


def text(places: str = PLACES, attended: str = ATTENDED) -> str:
    return decoder("learned").replace(PLACES, places).replace(ATTENDED, attended)


def flashed(graph, written: str) -> ir.Model:
    model = bake(graph(written))
    Flash().run(model, Context())
    return model


MASKED = ATTENDED.replace("v)", "v, seen)")
HIDING = text(HIDDEN + PLACES, MASKED)
LOWERED = text(ADDED + PLACES, ATTENDED.replace("v)", "v, added)"))
BOTH = text(
    HIDDEN + COUNTED.replace("is_padding", "is_no_word").replace("is_word", "is_one"), MASKED
)


@pytest.mark.parametrize(
    "written",
    [text(COUNTED), HIDING, LOWERED, BOTH],
    ids=["positions", "mask", "added mask", "both"],
)
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


@pytest.mark.parametrize("kind", NO_PADDING)
def test_a_mask_that_does_something_else_with_a_token_is_refused_by_name(kind, graph):
    model = flashed(graph, text(MARKS + NO_PADDING[kind] + PLACES, MASKED))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = KV().run(model, Context())
    reason = r"its mask '\w+' asks where token 5 was, and not to hide it as padding"
    assert re.fullmatch(reason, result.refusals[0].reason)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_positions_that_a_token_moves_forward_are_no_padding(graph):
    jumping = """
    jumps = Cast<to = 7>(marks)
    jumped = CumSum(jumps, one)
    at = Add(jumped, range)
    here = Gather(places, at)
    """
    assert KV().run(flashed(graph, text(MARKS + jumping)), Context()).refusals


def test_positions_that_padding_has_none_of_are_refused(graph):
    """Where a row holds padding there are fewer of them."""
    listed = """
    where = NonZero(is_word)
    column = Gather(where, one)
    here = Gather(places, column)
    """
    assert KV().run(flashed(graph, text(HIDDEN + listed, MASKED)), Context()).refusals


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
    model = flashed(graph, text(HIDDEN + PARTS, MASKED))
    model.metadata_props[PADDING_IDS] = "7"
    assert KV().run(model, Context()).refusals
    assert model.metadata_props[PADDING_IDS] == "7"
