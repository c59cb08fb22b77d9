"""A graph that answers for one token of each row is judged at every position all the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from tiny_lm import OrtModel, cached_lm, open_model, plain_lm

from optc.core.context import Array, Feeds
from optc.ir.interface import LENGTHS, NEW_LENGTHS
from optc.ir.reference import Reference, Sample
from optc.ir.shapes import infer_shapes
from optc.parity.baseline import Baseline
from optc.parity.compare import compare
from optc.parity.feeds import sample_feeds, token_feeds
from optc.parity.oracle import make_reference
from optc.parity.policy import Policy
from optc.rewrite.last_tokens import Tail, find_tail, keep_last_tokens
from optc.runtime.generate import generate

EXACT = Policy.default(["exact"])


def cached(*, capacity: int | None = None, last: bool = True) -> ir.Model:
    """The tiny model with a cache, answering for each row's last token."""
    model = cached_lm(capacity=capacity)
    next(v for node in model.graph for v in node.outputs if v.name == NEW_LENGTHS).name = "valid"
    if not last:
        return model
    infer_shapes(model)
    tail = find_tail(model, "B", "S")
    assert isinstance(tail, Tail)
    lengths = next(value for value in model.graph.inputs if value.name == LENGTHS)
    keep_last_tokens(model, tail, after=lengths)
    common.TopologicalSortPass()(model)
    return model


class Spoilt(OrtModel):
    """Answers wrongly where a call has `tokens` tokens on `past` of them."""

    def __init__(self, model: ir.Model, tokens: int | None, past: int):
        super().__init__(model)
        self.where = (tokens, past)

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        found = super().run(feeds, fetch)
        tokens, past = self.where
        same = tokens is None or feeds["input_ids"].shape[1] == tokens
        if same and int(feeds["cache_lengths"][0]) == past:
            found["logits"] = found["logits"][..., ::-1].copy()
        return found


@pytest.mark.parametrize("size", [None, 40])
def test_it_keeps_the_exact_promise(reference: Reference, size: int | None) -> None:
    metrics = compare(OrtModel(cached(capacity=size)), reference)
    assert EXACT.violations(metrics) == []
    assert metrics.greedy_equal == metrics.greedy_total == 36
    assert (metrics.top1, metrics.ppl_ratio) == (1, pytest.approx(1))


@pytest.mark.parametrize(
    ("tokens", "past"),
    [
        pytest.param(33, 0, id="prefill"),
        pytest.param(1, 17, id="one token"),
        pytest.param(6, 16, id="chunk"),
    ],
)
def test_one_wrong_way_to_call_it_is_caught(reference: Reference, tokens: int, past: int) -> None:
    session = Spoilt(cached(), tokens, past)
    assert EXACT.violations(compare(session, reference))


def test_as_many_positions_count_as_with_all_logits(reference: Reference) -> None:
    """One position of 33 wrong is the same fraction of top-1 agreement, not one of four samples."""
    only = dataclasses.replace(reference, samples=reference.samples[3:4], prompts=())
    assert only.samples[0].inputs["input_ids"].shape[1] == 33
    count = only.samples[0].inputs["input_ids"].size
    metrics = compare(Spoilt(cached(), 1, 20), only)
    assert metrics.top1 is not None
    assert 0.9 < metrics.top1 < 1
    assert count >= 33


def test_a_later_graph_is_held_against_all_positions(reference: Reference) -> None:
    """What is kept of the graph before a pass is [B,S,V], as the reference's own logits are."""
    session = OrtModel(cached())
    before = Baseline(reference)
    compare(session, reference, tap=before)
    again = before.compare(session)
    assert EXACT.violations(again) == []  # a prefill is compared with single tokens
    assert (again.top1, again.greedy_equal) == (1, 36)
    assert EXACT.violations(before.compare(Spoilt(cached(), 1, 9)))


def test_padding_of_a_sample_is_not_the_last_token() -> None:
    session = OrtModel(cached())
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    feeds = sample_feeds(session.inputs, {"input_ids": mask + 2, "attention_mask": mask})
    assert feeds["new_lengths"].tolist() == [3, 4]


def test_rows_of_tokens_name_their_own_lengths() -> None:
    session = OrtModel(cached())
    feeds = token_feeds(session.inputs, [np.array([3, 4, 5]), np.array([6])])
    assert feeds["new_lengths"].tolist() == [3, 1]
    assert feeds["input_ids"].tolist() == [[3, 4, 5], [6, 0, 0]]


def test_such_a_graph_can_be_its_own_reference() -> None:
    model = cached()
    reference = make_reference(model, open_model, seed=1)
    assert {s.outputs["logits"].shape[1] for s in reference.samples} == {1}
    metrics = compare(OrtModel(model), reference)
    assert (metrics.max_abs, metrics.faults) == (0, ())


def test_generation_writes_the_same_text(reference: Reference) -> None:
    prompts = [prompt.tolist() for prompt in reference.prompts]
    both = [
        generate(OrtModel(cached(last=last)), prompts, max_new_tokens=9).tokens
        for last in (False, True)
    ]
    assert both[0] == both[1]


def test_a_sample_of_one_token_is_whole() -> None:
    session = OrtModel(cached())
    tokens = np.array([[3], [4]])
    logits = OrtModel(plain_lm()).run({"input_ids": tokens})["logits"]
    one = Reference(source="graph", samples=(Sample({"input_ids": tokens}, {"logits": logits}),))
    metrics = compare(session, one)
    assert EXACT.violations(metrics) == []
