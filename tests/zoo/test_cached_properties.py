"""However a conversation goes (chunks, ragged rows, steps back), it is what whole sequences say."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from cached import Conversation, run_kv
from family import VOCABULARY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spellings import Spelling

from optc.core.context import Context
from optc.core.session import Session
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort
from optc.targets.ort_attention import BODY, GROUPED, attention_choices

ROWS, LONGEST = 3, 40
FAMILIES = {
    "llama": "rotary embeddings",
    "gpt2": "learned positions",
    "bloom": "ALiBi",
    "mistral": "a window of 8",
    "opt_padded": "positions counted from the padding mask",
}


@dataclasses.dataclass(frozen=True)
class Turn:
    """New tokens of each row: how many are forgotten first, and how many of the new ones count."""

    back: tuple[int, ...]
    real: tuple[int, ...]


_rows = st.tuples(*[st.integers(0, 9)] * ROWS)
_turns = st.lists(st.builds(Turn, back=_rows, real=_rows), min_size=2, max_size=6)


@pytest.fixture(scope="module", params=FAMILIES)
def sessions(request, exports):
    """The graph as exported; with a cache of each layout, and lowered for ONNX Runtime."""
    case = exports.case(request.param, Spelling("eager", 17, traced=True))
    models = [load_canonical(case.path) for _ in range(3)]
    for model, kv in zip(models[1:], (KV(), KV(max=LONGEST + 10)), strict=True):
        Flash().run(model, Context())
        assert run_kv(model, kv).rewrites == len(case.family.sites)
    lowered = [Ort().lower(model) for model in models[1:]]
    kernels = {choice.kernel for model in lowered for choice in attention_choices(model)}
    assert kernels == {BODY if request.param == "bloom" else GROUPED}
    models += lowered
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open_model(model)) for model in models]


def said(session: Session, tokens: np.ndarray) -> np.ndarray:
    """Logits [S,V] of a whole sequence [S] without a cache."""
    feeds = {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64)}
    taken = {port.name for port in session.inputs}
    return session.run({k: v for k, v in feeds.items() if k in taken})["logits"][0]


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(turns=_turns, seed=st.integers(0, 99))
def test_any_conversation(sessions, turns, seed):
    plain, *cached = sessions
    rng = np.random.default_rng(seed)
    history: list[np.ndarray] = [np.zeros(0, np.int64)] * ROWS
    talks = [Conversation(session, ROWS) for session in cached]
    for turn in turns:
        history = [row[: max(0, len(row) - n)] for row, n in zip(history, turn.back, strict=True)]
        new = rng.integers(0, VOCABULARY, (ROWS, max(1, *turn.real)))
        if max(map(len, history)) + new.shape[1] > LONGEST:
            break
        for talk in talks:
            talk.lengths = np.array([len(row) for row in history])
        answers = [talk.say(new, turn.real) for talk in talks]
        for row, count in enumerate(turn.real):
            start, history[row] = len(history[row]), np.append(history[row], new[row, :count])
            if not count:
                continue
            whole = said(plain, history[row])[start:]
            for logits in answers:
                got = logits[row, :count]
                np.testing.assert_allclose(got, whole, rtol=0, atol=2e-6)
                assert (got.argmax(-1) == whole.argmax(-1)).all()
