"""Decoders of the zoo with a cache: the same logits, piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
from families import FAMILIES
from spellings import Spelling, applies

from optc.core.context import Context
from optc.ir.interface import cache_ports, complete_feeds
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import open_model

CACHED = [
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "gemma2",
    "opt",
    "gpt_neox",
    "falcon",
]
REFUSED = ["bloom", "bert", "distilbert"]


def _params(names: list[str]) -> list[object]:
    """The captured spellings that `test_families` exports too."""
    return [
        pytest.param(name, Spelling(attention, opset), id=f"{name}-{attention}-{opset}")
        for name in names
        for attention, opset in (("sdpa", 18), ("eager", 18), ("sdpa", 23))
        if applies(name, FAMILIES[name], Spelling(attention, opset))
    ]


@pytest.mark.parametrize(("name", "spelling"), _params(CACHED))
def test_kv_gives_the_same_logits_piece_by_piece(name, spelling, exports):
    case = exports.case(name, spelling)
    model = load_canonical(case.path)
    Flash().run(model, Context())
    KV().requires(model, Context())
    assert KV().run(model, Context()).rewrites == len(case.family.sites)
    feeds, expected = case.samples[0]
    tokens = feeds["input_ids"]
    caches, parts, done = {}, [], 0
    with open_model(model) as session:
        for count in (6, 1, 4, 1, 7):
            new = tokens[:, done : done + count]
            given = {"input_ids": new, "cache_lengths": np.full(2, done)} | caches
            out = session.run(complete_feeds(session.inputs, given))
            caches = {c.past: out[c.present] for c in cache_ports(session.inputs)}
            parts.append(out["logits"])
            done += count
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=2e-5)


@pytest.mark.parametrize(("name", "spelling"), _params(CACHED))
def test_the_logits_of_the_last_token_are_those_of_all(name, spelling, exports):
    """Rows of different lengths, twice; the product with the vocabulary sees one token of each."""
    case = exports.case(name, spelling)
    model = load_canonical(case.path)
    Flash().run(model, Context())
    assert KV(logits="last").run(model, Context()).rewrites == len(case.family.sites)
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
            wanted = expected[[0, 1], done - 1]
            np.testing.assert_allclose(out["logits"][:, 0], wanted, atol=2e-5)


@pytest.mark.parametrize(("name", "spelling"), _params(REFUSED))
def test_kv_says_why_it_leaves_others_alone(name, spelling, exports):
    case = exports.case(name, spelling)
    model = load_canonical(case.path)
    Flash().run(model, Context())
    result = KV().run(model, Context())
    assert result.rewrites == 0
    assert len(result.refusals) >= len(case.family.sites)
