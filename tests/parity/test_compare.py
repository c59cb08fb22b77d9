"""A graph is judged on every way to use it: whole, in pieces, and as a ragged batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_lm import Bug, OrtModel, cached_lm, plain_lm

from optc.core.errors import SampleError
from optc.ir.reference import Reference
from optc.parity.cached import pieces
from optc.parity.compare import Tap, compare
from optc.parity.feeds import sample_feeds
from optc.parity.policy import Limits, Policy

EXACT = Policy.default(["exact"])


def test_a_graph_agrees_with_itself(reference: Reference) -> None:
    metrics = compare(OrtModel(plain_lm()), reference)
    assert metrics.max_abs == 0
    assert metrics.cosine == pytest.approx(1)
    assert (metrics.kl, metrics.top1, metrics.ppl_ratio) == (0, 1, 1)
    assert metrics.greedy_equal == metrics.greedy_total == 36
    assert metrics.notes == ()


@pytest.mark.parametrize("capacity", [None, 40])
def test_a_correct_cache_keeps_the_exact_promise(
    reference: Reference, capacity: int | None
) -> None:
    metrics = compare(OrtModel(cached_lm(capacity=capacity)), reference)
    assert EXACT.violations(metrics) == []
    assert metrics.greedy_equal == metrics.greedy_total == 36


def without_prompts(reference: Reference) -> Reference:
    return dataclasses.replace(reference, prompts=(), continuations=())


def test_a_wrong_prefill_is_caught(reference: Reference) -> None:
    model = cached_lm(bug=Bug(causal=False))
    assert EXACT.violations(compare(OrtModel(model), without_prompts(reference)))


LATER_BUGS = [
    pytest.param(Bug(at="Identity (steps)"), id="positions ignore the cache"),
    pytest.param(Bug(lengths="Sub (new_lengths, not_first)"), id="lengths one short"),
    pytest.param(Bug(lengths="Add (new_lengths, not_first)"), id="lengths one long"),
]


@pytest.mark.parametrize("bug", LATER_BUGS)
def test_a_bug_that_needs_a_filled_cache_hides_from_one_prefill(
    reference: Reference, bug: Bug
) -> None:
    session = OrtModel(cached_lm(capacity=40, bug=bug))
    for sample in reference.samples:
        logits = session.run(sample_feeds(session.inputs, sample.inputs))["logits"]
        np.testing.assert_allclose(logits, sample.outputs["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bug", LATER_BUGS)
def test_a_bug_that_needs_a_filled_cache_is_caught_by_the_pieces(
    reference: Reference, bug: Bug
) -> None:
    session = OrtModel(cached_lm(capacity=40, bug=bug))
    assert EXACT.violations(compare(session, without_prompts(reference)))


@pytest.mark.parametrize("bug", LATER_BUGS)
def test_a_bug_that_needs_a_filled_cache_moves_greedy_tokens(
    reference: Reference, bug: Bug
) -> None:
    metrics = compare(OrtModel(cached_lm(capacity=40, bug=bug)), reference)
    assert metrics.greedy_equal is not None
    assert metrics.greedy_equal < 36


def test_rows_that_share_the_longest_length_are_caught_by_the_ragged_batch(
    reference: Reference,
) -> None:
    bug = Bug(at="Add (steps, longest)", lengths="Expand (longest_new, rows)")
    session = OrtModel(cached_lm(bug=bug))
    assert EXACT.violations(compare(session, without_prompts(reference))) == []
    metrics = compare(session, reference)
    assert (metrics.greedy_equal or 0) < 36
    assert EXACT.violations(metrics)


def test_greedy_is_teacher_forced_position_by_position(reference: Reference) -> None:
    """One changed token costs one position, not the rest of the text."""
    continuations = [row.copy() for row in reference.continuations]
    continuations[1][-1] = (continuations[1][-1] + 1) % 32
    other = dataclasses.replace(reference, continuations=tuple(continuations))
    for model in (plain_lm(), cached_lm()):
        metrics = compare(OrtModel(model), other)
        assert (metrics.greedy_equal, metrics.greedy_total) == (35, 36)


def test_free_greedy_decoding_gives_the_same_text_when_all_tokens_are_equal(
    reference: Reference,
) -> None:
    session = OrtModel(plain_lm())
    for prompt, continuation in zip(reference.prompts, reference.continuations, strict=True):
        text = prompt
        for _ in continuation:
            logits = session.run({"input_ids": text[None]})["logits"]
            text = np.append(text, logits[0, -1].argmax())
        np.testing.assert_array_equal(text[len(prompt) :], continuation)


def test_continuations_of_different_lengths_are_all_judged(reference: Reference) -> None:
    cut = tuple(row[:n] for row, n in zip(reference.continuations, (1, 12, 4), strict=True))
    other = dataclasses.replace(reference, continuations=cut)
    for model in (plain_lm(), cached_lm()):
        metrics = compare(OrtModel(model), other)
        assert (metrics.greedy_equal, metrics.greedy_total) == (17, 17)


def test_what_does_not_fit_in_a_fixed_cache_is_left_out_and_named(reference: Reference) -> None:
    metrics = compare(OrtModel(cached_lm(capacity=19)), reference)
    assert metrics.greedy_total == 24
    assert metrics.notes == (
        "2 of 4 samples left out: they have up to 33 tokens, the cache holds 19",
        "1 of 3 prompts left out: with continuation they have up to 20 tokens, the cache holds 19",
    )
    assert EXACT.violations(metrics) == []


def test_a_cache_that_no_prompt_fits_in_leaves_greedy_unjudged(reference: Reference) -> None:
    metrics = compare(OrtModel(cached_lm(capacity=9)), reference)
    assert metrics.greedy_total is None
    reason = "greedy continuations were not judged: no prompt fits in the cache of 9 tokens"
    assert metrics.notes[-1] == reason
    (check,) = [c for c in Limits(greedy_equal=1.0).checks(metrics) if c.key == "greedy_equal"]
    assert (check.holds, check.sentence) == (None, reason)


def test_a_cache_that_no_sample_fits_in_is_an_error(reference: Reference) -> None:
    sentence = "none of 4 samples fits in the cache of 4 tokens, the shortest has 7; build with"
    with pytest.raises(SampleError, match=sentence):
        compare(OrtModel(cached_lm(capacity=4)), reference)


def test_a_missing_output_is_a_fault_and_never_passes(reference: Reference) -> None:
    model = plain_lm()
    model.graph.outputs[0].name = "scores"
    metrics = compare(OrtModel(model), reference)
    assert metrics.faults == ("the output 'logits' is missing",)
    for promise in ("exact", "measured"):
        assert "the output 'logits' is missing" in EXACT.violations(metrics, promise)


def test_an_input_that_no_sample_has_is_an_error(reference: Reference) -> None:
    model = plain_lm()
    model.graph.inputs[0].name = "words"
    with pytest.raises(SampleError, match="input_ids"):
        compare(OrtModel(model), reference)


def test_a_mask_that_the_cache_made_superfluous_is_not_fed(reference: Reference) -> None:
    masked = tuple(
        dataclasses.replace(
            s, inputs=s.inputs | {"attention_mask": np.ones_like(s.inputs["input_ids"])}
        )
        for s in reference.samples
    )
    metrics = compare(OrtModel(cached_lm()), dataclasses.replace(reference, samples=masked))
    assert EXACT.violations(metrics) == []


def test_the_tap_sees_every_sample_and_prompt(reference: Reference) -> None:
    class Seen(Tap):
        def __init__(self) -> None:
            self.samples: list[int] = []
            self.tokens: list[np.ndarray] = []

        def outputs(self, index, outputs) -> None:
            self.samples.append(index)

        def predictions(self, tokens) -> None:
            self.tokens += tokens

    seen = Seen()
    compare(OrtModel(cached_lm()), reference, tap=seen)
    assert seen.samples == [0, 1, 2, 3]
    for tokens, continuation in zip(seen.tokens, reference.continuations, strict=True):
        np.testing.assert_array_equal(tokens, continuation)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 16, 33, 128])
def test_pieces_cover_the_sequence(tokens: int) -> None:
    sizes = pieces(tokens)
    assert sum(sizes) == tokens
    assert all(size > 0 for size in sizes)
    assert sizes[-1] == 1


def test_a_long_sequence_has_a_prefill_two_unequal_chunks_and_single_tokens() -> None:
    assert pieces(128) == [64, 38, 18] + [1] * 8
