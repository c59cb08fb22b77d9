"""Families of the zoo, generating: where the cache is makes no difference to the tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from spellings import Spelling

from optc.core.context import Context
from optc.core.errors import UnsupportedError
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.runtime.batching import Batcher
from optc.runtime.cache import ArrayCache
from optc.runtime.generate import generate
from optc.runtime.request import Request
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort
from optc.targets.ort_cache import OrtCache
from optc.targets.ort_session import OrtSession

PROMPTS = ((1, 2, 3, 9, 4), (4,), (7, 5, 3))
NEW = 8
IN_PLACE = {"gpt2": True, "mistral": True, "gemma2": True, "bloom": False}
POSITIONS = {"gpt2": 64}


@pytest.fixture(scope="module", params=IN_PLACE)
def family(request, exports) -> Iterator[tuple[str, OrtSession]]:
    model = load_canonical(exports.case(request.param, Spelling("eager")).path)
    Flash().run(model, Context())
    KV().run(model, Context())
    with open_model(Ort().lower(model)) as session:
        yield request.param, session


def by_arrays(session: OrtSession, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Greedy tokens, one token at a time through `run`."""
    cache, said = ArrayCache(session, 1, len(prompt) + NEW), list(prompt)
    for length in range(len(prompt) + NEW - 1):
        feeds = {
            "input_ids": np.array([[said[length]]]),
            "cache_lengths": np.array([length]),
        }
        logits = cache.step(feeds, ("logits",))["logits"]
        if length >= len(prompt) - 1:
            said.append(int(logits[0, -1].argmax()))
    return tuple(said[len(prompt) :])


def test_tokens_do_not_depend_on_where_the_cache_is(family: tuple[str, OrtSession]) -> None:
    name, session = family
    assert isinstance(session.new_cache(1, 8), OrtCache) == IN_PLACE[name]
    expected = tuple(by_arrays(session, prompt) for prompt in PROMPTS)
    assert generate(session, PROMPTS, max_new_tokens=NEW).tokens == expected
    batcher = Batcher(session, slots=2, max_tokens=16, chunk=2)
    tickets = batcher.run(Request(prompt, NEW) for prompt in PROMPTS)
    assert tuple(ticket.tokens for ticket in tickets) == expected


def test_positions_that_are_learned_are_a_limit(family: tuple[str, OrtSession]) -> None:
    name, session = family
    assert session.most_tokens == POSITIONS.get(name)
    if name in POSITIONS:
        with pytest.raises(UnsupportedError, match="the model has positions for 64"):
            generate(session, PROMPTS[:1], max_new_tokens=61)
