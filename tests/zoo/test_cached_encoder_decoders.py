"""Encoder-decoders of the zoo with caches: what PyTorch answers, however the tokens come.

From the second call on the encoder's inputs hold zeros: who ran it again would be found out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from encoder_decoders import ENCODER_DECODERS, PADDED_ENCODER_DECODERS
from families import FAMILIES
from spellings import Spelling, in_tests

from optc.core.context import Context
from optc.core.session import Session
from optc.ir.interface import cache_ports, complete_feeds
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import open_model

NAMES = [*ENCODER_DECODERS, *PADDED_ENCODER_DECODERS]
TRACED = Spelling("eager", 17, traced=True)
LAYOUTS = {"concat": KV(), "static": KV(max=20)}
_ROUNDINGS, _WIDEST = 64, 2e-5  # as in `test_families`
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Cached:
    """A graph with caches, and what PyTorch answers to samples without."""

    session: Session
    samples: Sequence[tuple[Mapping[str, Array], Array]]


class Conversation:
    """What is said of one sample, and how many tokens of each row were said."""

    def __init__(self, session: Session, feeds: Mapping[str, Array]):
        self._session = session
        self._encoder = {k: v for k, v in feeds.items() if k != "decoder_input_ids"}
        self._caches: dict[str, Array] = {}
        self.lengths = np.zeros(len(feeds["decoder_input_ids"]), np.int64)

    def say(self, tokens: Array, real: Sequence[int] | None = None) -> Array:
        """Logits [B,S,V] of new tokens [B,S], of which the first `real` of each row count."""
        given = {"decoder_input_ids": tokens, "cache_lengths": self.lengths} | self._caches
        out = self._session.run(complete_feeds(self._session.inputs, self._encoder | given))
        self._caches = {c.past: out[c.present] for c in cache_ports(self._session.inputs)}
        self._encoder |= {k: v * 0 for k, v in self._encoder.items() if k != "attention_mask"}
        self.lengths = self.lengths + (tokens.shape[1] if real is None else np.array(real))
        return out["logits"]


def _params() -> list[object]:
    """Each family as it is traced, and as it is captured where `test_families` does that too."""
    spelled: dict[str, list[Spelling]] = {}
    for name, spelling in in_tests({name: FAMILIES[name] for name in NAMES}):
        if spelling in (TRACED, Spelling("sdpa"), Spelling("eager")):
            spelled.setdefault(name, []).append(spelling)
    chosen = [(n, s, "concat") for n, found in spelled.items() for s in found]
    chosen += [(n, found[-1], "static") for n, found in spelled.items()]
    return [pytest.param(one, id="-".join(map(str, one))) for one in chosen]


@pytest.fixture(scope="module", params=_params())
def cached(request, exports):
    name, spelling, layout = request.param
    case = exports.case(name, spelling)
    model = load_canonical(case.path)
    Flash().run(model, Context())
    kv = LAYOUTS[layout]
    kv.requires(model, Context())
    result = kv.run(model, Context())
    kv.ensures(model, result)
    own = [site for site in case.family.sites if site.causal]
    assert (result.rewrites, result.refusals) == (2 * len(own), ())
    with open_model(model) as session:
        yield Cached(session, case.samples)


def assert_same(got: Array, expected: Array) -> None:
    """Float32 round-off apart, and the same greedy tokens."""
    rounding = np.finfo(expected.dtype).eps * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=min(_ROUNDINGS * rounding, _WIDEST))
    assert (got.argmax(-1) == expected.argmax(-1)).all()


def test_a_sequence_in_chunks(cached):
    """All at once, one token after the other, and in pieces of up to 17."""
    for feeds, expected in cached.samples:
        tokens = feeds["decoder_input_ids"]
        for chunk in range(1, 18):
            talk = Conversation(cached.session, feeds)
            starts = range(0, tokens.shape[1], chunk)
            parts = [talk.say(tokens[:, at : at + chunk]) for at in starts]
            assert_same(np.concatenate(parts, 1), expected)


def test_rows_of_four_lengths_in_one_batch(cached):
    feeds, expected = cached.samples[2]
    rows = [0, 1, 2, 0]
    feeds = {name: array[rows] for name, array in feeds.items()}
    tokens, expected = feeds["decoder_input_ids"], expected[rows]
    talk, prompts = Conversation(cached.session, feeds), (7, 5, 3, 1)
    first = talk.say(tokens[:, :7], prompts)
    for row, count in enumerate(prompts):
        assert_same(first[row, :count], expected[row, :count])
    for count in (1, 3, 2):
        at = talk.lengths
        got = talk.say(np.stack([t[n : n + count] for t, n in zip(tokens, at, strict=True)]))
        for row, n in enumerate(at):
            assert_same(got[row], expected[row, n : n + count])


def test_taken_back_and_said_anew(cached):
    feeds, expected = cached.samples[0]
    tokens, kept = feeds["decoder_input_ids"], np.array([3, 6])
    talk = Conversation(cached.session, feeds)
    told = np.where(np.arange(11) < kept[:, None], tokens, tokens[:, ::-1])
    talk.say(told)
    talk.lengths = kept
    got = talk.say(np.stack([row[n : n + 5] for row, n in zip(tokens, kept, strict=True)]))
    for row, n in enumerate(kept):
        assert_same(got[row], expected[row, n : n + 5])


@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
def test_the_logits_of_the_last_token_are_those_of_all(name, exports):
    case = exports.case(name, TRACED)
    model = load_canonical(case.path)
    Flash().run(model, Context())
    assert KV(logits="last").run(model, Context()).refusals == ()
    feeds, expected = case.samples[0]
    counts = np.array([5, 8])
    more = {"cache_lengths": np.zeros(2, np.int64), "new_lengths": counts}
    with open_model(model) as session:
        out = session.run(complete_feeds(session.inputs, feeds | more))
    assert_same(out["logits"][:, 0], expected[[0, 1], counts - 1])
