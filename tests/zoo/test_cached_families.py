"""Decoders of the zoo with a cache: what PyTorch says to whole sequences, however they are said."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools

import numpy as np
import onnx_ir as ir
import pytest
from cached import in_chunks, on_tokens, ragged, rolled_back, run_kv
from decoders import DECODERS, PADDED_DECODERS
from exported import Case
from families import FAMILIES
from spellings import Spelling, in_tests

from optc.core.context import Context
from optc.core.errors import UnsupportedError
from optc.core.session import Session
from optc.ir.interface import cache_ports, complete_feeds
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import open_model

# No sink of GPT-OSS, no convolution of LFM2: see the tests of what is refused.
NAMES = [name for name in DECODERS | PADDED_DECODERS if name not in {"gpt_oss", "lfm2"}]
LAYOUTS = {"concat": KV(), "static": KV(max=24)}
_ROUNDINGS, _WIDEST = 64, 2e-5  # as in `test_families`


@dataclasses.dataclass(frozen=True)
class Cached:
    """A decoder with a cache, in each layout; sequences, with what PyTorch answers to each."""

    sessions: list[Session]
    rows: list[tuple[np.ndarray, np.ndarray]]


def _params() -> list[object]:
    """Each family as it is traced, and captured where `test_families` exports that anyway."""
    wanted = (Spelling("eager", 17, traced=True), Spelling("sdpa"), Spelling("eager"))
    chosen = {
        (name, min(spelling.opset, 18), spelling.traced): (name, spelling)
        for name, spelling in in_tests({name: FAMILIES[name] for name in NAMES})
        if spelling in wanted
    }
    return [pytest.param(one, id="-".join(map(str, one))) for one in chosen.values()]


def _rows(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Four sequences, the words of each that are no padding."""
    found = []
    for feeds, answer in case.samples[:3]:
        padding = feeds.get("attention_mask", np.ones_like(feeds["input_ids"]))
        counts = padding.sum(1)
        found += [
            (feeds["input_ids"][row, :count], answer[row, :count])
            for row, count in enumerate(counts)
        ]
    return found[:4]


def _flashed(case: Case) -> ir.Model:
    model = load_canonical(case.path)
    Flash().run(model, Context())
    return model


@pytest.fixture(scope="module", params=_params())
def cached(request, exports):
    case = exports.case(*request.param)
    flashed = _flashed(case)
    with contextlib.ExitStack() as stack:
        sessions = []
        for kv in LAYOUTS.values():
            model = flashed.clone()
            result = run_kv(model, kv)
            assert (result.rewrites, result.refusals) == (len(case.family.sites), ())
            sessions.append(stack.enter_context(open_model(model)))
        yield Cached(sessions, _rows(case))


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Float32 round-off apart, and the same greedy tokens."""
    rounding = np.finfo(expected.dtype).eps * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=min(_ROUNDINGS * rounding, _WIDEST))
    assert (got.argmax(-1) == expected.argmax(-1)).all()


def test_tokens_are_the_only_words_it_takes(cached):
    for session in cached.sessions:
        names = {port.name for port in session.inputs if "past_key_values" not in port.name}
        assert names == {"input_ids", "cache_lengths"}


def test_a_sequence_in_chunks(cached):
    """All at once, one token after the other, and in pieces of up to 17."""
    tokens, expected = cached.rows[0]
    for session, chunk in itertools.product(cached.sessions, (19, *range(1, 18))):
        assert_same(in_chunks(session, tokens[None], [chunk] * 19)[0], expected)


def test_rows_of_four_lengths_in_one_batch(cached):
    rows = [tokens for tokens, _ in cached.rows]
    for session in cached.sessions:
        answers = ragged(session, rows, (9, 6, 3, 1))
        for got, (_, expected) in zip(answers, cached.rows, strict=True):
            assert_same(got, expected[: len(got)])


def test_taken_back_and_said_anew(cached):
    (one, first), (two, second) = cached.rows[:2]
    count, kept = min(len(one), len(two)), (5, 9)
    tokens = np.stack([one[:count], two[:count]])
    for session in cached.sessions:
        answers = rolled_back(session, tokens, kept)
        for logits, expected, at in zip(answers, (first, second), kept, strict=True):
            assert_same(logits, expected[at : at + len(logits)])


LAST = ["gpt2", "llama", "qwen3", "mistral", "phi3", "gemma2", "opt", "gpt_neox", "falcon", "bloom"]


@pytest.mark.parametrize("name", LAST)
def test_the_logits_of_the_last_token_are_those_of_all(name, exports):
    """Rows of different lengths, twice; the product with the vocabulary sees one token of each."""
    case = exports.case(name, Spelling("eager", 17, traced=True))
    model = _flashed(case)
    assert run_kv(model, KV(logits="last")).rewrites == len(case.family.sites)
    feeds, expected = case.samples[0]
    tokens, caches, done = feeds["input_ids"][:2], {}, np.zeros(2, np.int64)
    with open_model(model) as session:
        for counts in (np.array([6, 3]), np.array([1, 5])):
            new = np.zeros((2, max(counts)), np.int64)
            for row, (start, count) in enumerate(zip(done, counts, strict=True)):
                new[row, :count] = tokens[row, start : start + count]
            given = {"input_ids": new, "cache_lengths": done, "new_lengths": counts} | caches
            out = session.run(complete_feeds(session.inputs, given))
            caches = {c.past: out[c.present] for c in cache_ports(session.inputs)}
            done = done + counts
            assert out["logits"].shape == (2, 1, expected.shape[2])
            assert_same(out["logits"][:, 0], expected[[0, 1], done - 1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torchs_own_layers(layout, exports):
    """They take hidden states, which a table stands for."""
    case = exports.case("torch_encoder_causal", Spelling("eager"))
    model = load_canonical(case.path)
    (feeds, expected), *_ = case.samples
    hidden = feeds["hidden"]
    on_tokens(model, "hidden", hidden.reshape(-1, hidden.shape[-1]))
    Flash().run(model, Context())
    assert run_kv(model, LAYOUTS[layout]).rewrites == 2
    tokens = np.arange(hidden[..., 0].size).reshape(hidden.shape[:2])
    with open_model(model) as session:
        for chunks in ([19], [1] * 19, [6, 1, 4, 1, 7]):
            assert_same(in_chunks(session, tokens, chunks), expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bert", "not causal"), ("distilbert", "not causal"), ("lfm2", "Conv combines tokens")],
)
def test_what_is_refused_says_why(name, reason, exports):
    model = _flashed(exports.case(name, Spelling("eager", 17, traced=True)))
    before = [node.name for node in model.graph], [v.name for v in model.graph.inputs]
    result = KV().run(model, Context())
    assert result.rewrites == 0
    assert any(reason in refusal.reason for refusal in result.refusals)
    assert before == ([n.name for n in model.graph], [v.name for v in model.graph.inputs])


def test_attention_that_has_no_op_is_asked_for(exports):
    model = _flashed(exports.case("gpt_oss", Spelling("eager", 17, traced=True)))
    with pytest.raises(UnsupportedError, match="no canonical attention"):
        KV().requires(model, Context())
