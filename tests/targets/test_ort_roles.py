"""Two engines over one cache: which one runs a call, and that a text goes from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_generator import tiny_language_model

from optc.core.context import Array
from optc.core.errors import ModelFileError, UnsupportedError
from optc.core.session import CachedSession, EncodingSession, PaddedSession
from optc.runtime.batching import Batcher
from optc.runtime.generate import generate
from optc.runtime.request import Request
from optc.targets.base import Target
from optc.targets.ort import Ort
from optc.targets.ort_roles import OrtRoles
from optc.targets.ort_session import OrtSession

FROM = 4


def moved(amount: float) -> ir.Model:
    """The tiny model with other weights, so that its answers and keys say which engine ran."""
    model = tiny_language_model("concat")
    for name in ("wk", "wv", "head"):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        weights = value.const_value.numpy()
        value.const_value = ir.tensor(weights + np.float32(amount) * weights[::-1], name=name)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, target = tmp_path_factory.mktemp("both"), Ort()
    target.build(target.lower(moved(0)), made)
    facts = target.build_prefill(target.lower(moved(0.5)), made)
    assert facts["file"] == "prefill.onnx"
    assert facts["files"] == sorted(path.name for path in made.iterdir())
    return made


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[OrtRoles]:
    with Ort().open_both(folder, FROM) as session:
        yield session


@pytest.fixture(scope="module")
def decode(folder: Path) -> Iterator[OrtSession]:
    with Ort().open(folder) as session:
        yield session


@pytest.fixture(scope="module")
def prefill(folder: Path) -> Iterator[OrtSession]:
    with Ort().open_prefill(folder) as session:
        yield session


def by_hand(calls: list[tuple[OrtSession, list[int]]]) -> Array:
    """Logits [V] after the last of some calls on one text, arrays going in and out of `run`."""
    past = {f"past_key_values.0.{part}": np.zeros((1, 2, 0, 8), np.float32) for part in PARTS}
    done = 0
    for session, tokens in calls:
        feeds = {"input_ids": np.array([tokens]), "cache_lengths": np.array([done])}
        found = session.run({**feeds, **past})
        past = {f"past_key_values.0.{part}": found[f"present.0.{part}"] for part in PARTS}
        done += len(tokens)
    logits: Array = found["logits"][0, -1]
    return logits


PARTS = ("key", "value")


def greedy_by_hand(first: OrtSession, then: OrtSession, prompt: list[int], count: int) -> list[int]:
    calls, tokens = [(first, prompt)], list[int]()
    while len(tokens) < count:
        tokens.append(int(by_hand(calls).argmax()))
        calls.append((then, tokens[-1:]))
    return tokens


def test_it_is_a_session_like_any_other(both: OrtRoles, decode: OrtSession) -> None:
    assert isinstance(both, CachedSession)
    assert isinstance(both, PaddedSession)
    assert isinstance(both, EncodingSession)
    assert both.inputs == decode.inputs
    assert both.outputs == decode.outputs
    assert both.most_tokens == decode.most_tokens == 64


@pytest.mark.parametrize("tokens", [1, FROM - 1, FROM, FROM + 1])
def test_the_number_of_new_tokens_says_which_engine_runs(
    tokens: int, both: OrtRoles, decode: OrtSession, prefill: OrtSession
) -> None:
    text = list(range(5, 5 + tokens))
    wanted = by_hand([(prefill if tokens >= FROM else decode, text)])
    other = by_hand([(decode if tokens >= FROM else prefill, text)])
    assert np.abs(wanted - other).max() > 0.1
    feeds = {"input_ids": np.array([text]), "cache_lengths": np.zeros(1, np.int64)}
    empty = {f"past_key_values.0.{p}": np.zeros((1, 2, 0, 8), np.float32) for p in PARTS}
    np.testing.assert_array_equal(both.run({**feeds, **empty})["logits"][0, -1], wanted)
    cache = both.new_cache(1, 32)
    assert cache is not None
    np.testing.assert_allclose(
        cache.step(feeds, ("logits",))["logits"][0, -1], wanted, rtol=1e-5, atol=1e-5
    )


def test_a_text_that_one_engine_began_the_other_goes_on_with(
    both: OrtRoles, decode: OrtSession, prefill: OrtSession
) -> None:
    prompt = [7, 3, 250, 9, 11, 4]
    wanted = greedy_by_hand(prefill, decode, prompt, 8)
    alone = [greedy_by_hand(one, one, prompt, 8) for one in (prefill, decode)]
    assert wanted not in alone, "the test can tell who wrote what"
    assert list(generate(both, [prompt], max_new_tokens=8).tokens[0]) == wanted


def test_the_last_part_of_a_prompt_may_be_too_short_for_prefill(
    both: OrtRoles, decode: OrtSession, prefill: OrtSession
) -> None:
    prompt = [7, 3, 250, 9, 11, 4, 88]
    calls = [(prefill, prompt[:FROM]), (decode, prompt[FROM:])]
    found = generate(both, [prompt], max_new_tokens=1, prefill_chunk=FROM)
    assert list(found.tokens[0]) == [int(by_hand(calls).argmax())]


def test_rows_of_a_batch_get_the_tokens_that_they_get_alone(both: OrtRoles) -> None:
    """Prompts that wait together go in together, and the longest row says where."""
    prompts = [(7, 3, 250, 9, 11, 4), (5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8, 9)]
    batcher = Batcher(both, slots=2, max_tokens=32)
    asked = [batcher.submit(Request(prompt, 6)) for prompt in prompts]
    while batcher.step():
        pass
    alone = [generate(both, [prompt], max_new_tokens=6).tokens[0] for prompt in prompts]
    assert [list(request.tokens) for request in asked] == [list(tokens) for tokens in alone]


def test_the_longest_row_of_a_ragged_call_decides(
    both: OrtRoles, decode: OrtSession, prefill: OrtSession
) -> None:
    short, long = [15, 16], [9, 8, 7, 6, 5]
    of_prefill, of_decode = (int(by_hand([(one, short)]).argmax()) for one in (prefill, decode))
    assert of_prefill != of_decode
    together = generate(both, [short, long], max_new_tokens=1).tokens
    alone = generate(both, [short], max_new_tokens=1).tokens
    assert [list(together[0]), list(alone[0])] == [[of_prefill], [of_decode]]


def test_both_write_into_the_same_memory(both: OrtRoles) -> None:
    cache = both.new_cache(1, 32)
    assert cache is not None
    (key, value) = (cache._buffers[f"past_key_values.0.{part}"] for part in PARTS)
    where = key.ctypes.data, value.ctypes.data
    for count, done in ((FROM, 0), (1, FROM)):
        feeds = {"input_ids": np.ones((1, count), np.int64), "cache_lengths": np.array([done])}
        cache.step(feeds, ("logits",))
    assert key[0, :, : FROM + 1].any(axis=(0, 2)).all()
    assert not key[0, :, FROM + 1 :].any()
    assert where == (key.ctypes.data, value.ctypes.data)


def test_a_session_that_cannot_update_in_place_makes_arrays_of_both(
    folder: Path, tmp_path: Path, both: OrtRoles
) -> None:
    model = ir.load(folder / "prefill.onnx")
    model.metadata_props.pop("optc.caches_in_place")
    ir.save(model, tmp_path / "prefill.onnx", external_data="prefill.onnx.data")
    with OrtSession(folder / "engine.onnx") as one, OrtSession(tmp_path / "prefill.onnx") as other:
        slow = OrtRoles(one, other, FROM)
        assert slow.new_cache(1, 16) is None
        prompt = [7, 3, 250, 9, 11, 4]
        wanted = generate(both, [prompt], max_new_tokens=6).tokens
        assert generate(slow, [prompt], max_new_tokens=6).tokens == wanted


def test_engines_that_differ_in_their_caches_are_no_pair(folder: Path, tmp_path: Path) -> None:
    target = Ort()
    target.build(target.lower(tiny_language_model("static", 16)), tmp_path)
    words = "the inputs of the prefill engine are not those"
    with (
        Ort().open(folder) as one,
        Ort().open(tmp_path) as other,
        pytest.raises(ModelFileError, match=words),
    ):
        OrtRoles(one, other, FROM)


def test_closing_it_closes_both(folder: Path) -> None:
    session = Ort().open_both(folder, FROM)
    session.close()
    for count in (1, FROM):
        assert session.engine_for(count)._session is None


def test_a_target_without_an_engine_for_prefill_says_so(tmp_path: Path) -> None:
    class Plain(Ort):
        name = "plain"
        build_prefill = Target.build_prefill
        open_prefill = Target.open_prefill
        open_both = Target.open_both

    for call in (
        lambda: Plain().build_prefill(tiny_language_model(""), tmp_path),
        lambda: Plain().open_prefill(tmp_path),
        lambda: Plain().open_both(tmp_path, 9),
    ):
        with pytest.raises(UnsupportedError, match="the target 'plain' has one engine for all"):
            call()
