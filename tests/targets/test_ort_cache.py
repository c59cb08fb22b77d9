"""Caches that stay where they are: the same numbers as by `run`, and nothing copied."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_generator import VOCAB, tiny_language_model

from optc.core.context import Array
from optc.core.errors import OptcError, SampleError, UnsupportedError
from optc.core.session import Cache, CachedSession
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort
from optc.targets.ort_cache import OrtCache
from optc.targets.ort_in_place import note_in_place
from optc.targets.ort_session import OrtSession

CAPACITY = 24
BOTH = {"past_key_values.0.key", "past_key_values.0.value"}


def function_body() -> ir.Model:
    """A static cache whose attention nothing lowered."""
    model = tiny_language_model("static", CAPACITY)
    note_in_place(model)
    return model


KINDS = {
    "static, function body": function_body,
    "static, lowered": lambda: Ort().lower(tiny_language_model("static", CAPACITY)),
    "growing, lowered": lambda: Ort().lower(tiny_language_model("concat")),
}


@pytest.fixture(params=KINDS, scope="module")
def session(request: pytest.FixtureRequest) -> Iterator[OrtSession]:
    with open_model(KINDS[request.param]()) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain() -> Iterator[OrtSession]:
    with open_model(tiny_language_model("")) as opened:
        yield opened


def new_cache(session: OrtSession, rows: int = 1) -> OrtCache:
    cache = session.new_cache(rows, CAPACITY)
    assert cache is not None
    return cache


def step(cache: Cache, tokens: Array, lengths: list[int], row: int = 0) -> Array:
    """Logits [B,S,V]."""
    feeds = {"input_ids": np.atleast_2d(tokens), "cache_lengths": np.array(lengths)}
    return cache.step(feeds, ("logits",), row=row)["logits"].copy()


def test_a_session_that_cannot_has_no_cache_of_its_own(plain: OrtSession) -> None:
    assert isinstance(plain, CachedSession)
    assert plain.new_cache(1, 4) is None
    with open_model(tiny_language_model("concat")) as growing:
        assert growing.new_cache(1, 4) is None


# Round-off of float32 sums over 16 channels and at most 24 keys, of numbers up to about 10.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_chunks_of_any_rows_give_what_the_whole_text_gives(
    data: st.DataObject, session: OrtSession, plain: OrtSession
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    cache = new_cache(session, 3)
    for row in data.draw(st.permutations(range(3))):
        sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
        text = rng.integers(0, VOCAB, sum(sizes))
        whole = plain.run({"input_ids": text[None]})["logits"][0]
        ends = np.cumsum(sizes)
        for end, size in zip(ends, sizes, strict=True):
            found = step(cache, text[end - size : end], [int(end - size)], row)
            np.testing.assert_allclose(found[0], whole[end - size : end], **CLOSE)


def test_rows_of_a_batch_have_lengths_of_their_own_and_may_be_rolled_back(
    session: OrtSession, plain: OrtSession, rng: np.random.Generator
) -> None:
    texts = rng.integers(0, VOCAB, (2, 9))
    cache = new_cache(session, 2)
    step(cache, texts[:, :6], [0, 0])
    found = step(cache, np.stack([texts[0, 6:9], texts[1, 2:5]]), [6, 2])
    whole = plain.run({"input_ids": texts})["logits"]
    np.testing.assert_allclose(found[0], whole[0, 6:9], **CLOSE)
    np.testing.assert_allclose(found[1], whole[1, 2:5], **CLOSE)


def test_a_moved_row_goes_on_as_it_was(
    session: OrtSession, plain: OrtSession, rng: np.random.Generator
) -> None:
    text = rng.integers(0, VOCAB, 8)
    cache = new_cache(session, 3)
    step(cache, text[:7], [0], row=2)
    cache.move(2, 0, 7)
    whole = plain.run({"input_ids": text[None]})["logits"]
    np.testing.assert_allclose(step(cache, text[7:], [7])[0, 0], whole[0, 7], **CLOSE)


def test_only_the_new_tokens_are_written(session: OrtSession, rng: np.random.Generator) -> None:
    cache = new_cache(session, 2)
    for buffer in cache._buffers.values():
        buffer[...] = 7.0
    before = [buffer.ctypes.data for buffer in cache._buffers.values()]
    step(cache, rng.integers(0, VOCAB, 3), [5], row=1)
    for buffer, address in zip(cache._buffers.values(), before, strict=True):
        written = (buffer != 7.0).any(axis=(1, 3))
        assert np.flatnonzero(written[1]).tolist() == [5, 6, 7]
        assert not written[0].any()
        assert buffer.ctypes.data == address


def test_a_step_costs_the_same_whatever_the_room() -> None:
    """A copy of the larger cache, 256 MiB, would take longer than a hundred steps."""
    with open_model(Ort().lower(tiny_language_model("concat"))) as opened:

        def median(capacity: int) -> float:
            cache = opened.new_cache(1, capacity)
            assert cache is not None
            times = []
            for length in range(30):
                started = time.perf_counter()
                step(cache, np.array([1]), [length])
                times.append(time.perf_counter() - started)
            return statistics.median(times)

        small = median(64)
        assert median(2**21) < 20 * small


def test_a_step_of_the_same_shape_binds_nothing_again(session: OrtSession) -> None:
    cache = new_cache(session)
    one = cache.step({"input_ids": np.array([[1]]), "cache_lengths": np.array([0])}, ("logits",))
    two = cache.step({"input_ids": np.array([[2]]), "cache_lengths": np.array([1])}, ("logits",))
    assert one["logits"] is two["logits"]
    assert cache.seconds > 0


@pytest.mark.parametrize(
    ("length", "error", "sentence"),
    [
        (CAPACITY - 1, UnsupportedError, "row 0 has 23 tokens and gets 2 more, the cache holds 24"),
        (-1, SampleError, "row 0 has -1 tokens by 'cache_lengths'; a length is 0 or more"),
    ],
)
def test_what_would_be_written_outside_is_refused_and_nothing_is_run(
    session: OrtSession, length: int, error: type[OptcError], sentence: str
) -> None:
    cache = new_cache(session)
    with pytest.raises(error, match=sentence):
        step(cache, np.array([1, 2]), [length])
    assert cache.seconds == 0
    assert not any(buffer.any() for buffer in cache._buffers.values())


def test_rows_outside_the_cache_are_refused(session: OrtSession) -> None:
    with pytest.raises(SampleError, match="rows 1 to 3 are not in a cache of 2 rows"):
        step(new_cache(session, 2), np.array([[1], [2]]), [0, 0], row=1)


def test_a_fixed_cache_is_not_made_larger() -> None:
    with (
        open_model(function_body()) as session,
        pytest.raises(UnsupportedError, match="the engine's cache holds 24 tokens, not 25"),
    ):
        session.new_cache(1, CAPACITY + 1)


def test_outputs_whose_size_does_not_follow_are_the_runtimes_to_allocate() -> None:
    model = function_body()
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    logits.shape = ir.Shape(["B", "other", VOCAB])
    with open_model(model) as session:
        cache = new_cache(session)
        first = step(cache, np.array([3, 4]), [0])
        assert first.shape == (1, 2, VOCAB)
        assert not np.array_equal(first[:, 1:], step(cache, np.array([9]), [2]))


def encoder_decoder() -> ir.Model:
    """Adds up what the encoder made of `heard`, as long as it is not asked again."""
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        heard (float[B,1,E,4] heard, int64[B,S] decoder_input_ids, int64[B] cache_lengths,
               float[B,1,8,4] own_past, float[B,1,T,4] past)
            => (float[B,4] logits, float[B,1,8,4] own_present, float[B,1,U,4] present) {
            count = Shape<start = 2, end = 3>(past)
            zero = Constant<value_ints = [0]>()
            is_empty_1d = Equal(count, zero)
            is_empty = Squeeze(is_empty_1d)
            present = If (is_empty) <
                then_branch = encode () => (float[B,1,U,4] e) { e = Neg(heard) },
                else_branch = keep () => (float[B,1,U,4] k) { k = Identity(past) }
            >
            tokens = Cast<to = 1>(decoder_input_ids)
            axes = Constant<value_ints = [1, 3]>()
            tokens_4d = Unsqueeze(tokens, axes)
            width = Constant<value_ints = [1, 1, 1, 4]>()
            new = Expand(tokens_4d, width)
            own_present = TensorScatter<axis = 2>(own_past, new, cache_lengths)
            sides = Constant<value_ints = [1, 2]>()
            mine = ReduceSum<keepdims = 0>(own_present, sides)
            theirs = ReduceSum<keepdims = 0>(present, sides)
            logits = Add(mine, theirs)
        }"""
    )
    values = {v.name: v for v in (*model.graph.inputs, *model.graph.outputs)}
    for side, name in (("past", "past_key_values"), ("present", "present")):
        values[f"own_{side}"].name = f"{name}.0.decoder.key"
        values[side].name = f"{name}.0.encoder.key"
    note_in_place(model)
    return model


def test_what_an_encoder_gives_is_computed_once_and_stays_where_it_is() -> None:
    heard = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)
    total = -heard.sum((1, 2))
    with open_model(encoder_decoder()) as session:
        cache = session.new_cache(2, 8)
        assert cache is not None

        def run(tokens: list[list[int]], lengths: list[int], heard: Array) -> Array:
            feeds = {"heard": heard, "decoder_input_ids": np.array(tokens)}
            feeds["cache_lengths"] = np.array(lengths)
            return cache.step(feeds, ("logits",))["logits"].copy()

        found = run([[1, 2], [3, 4]], [0, 0], heard)
        np.testing.assert_array_equal(found, total + np.array([[3], [7]]))
        given = cache._buffers["past_key_values.0.encoder.key"]
        found = run([[5], [6]], [2, 1], 100 * heard)
        np.testing.assert_array_equal(found, total + np.array([[8], [9]]))
        cache.move(1, 0, 2)
        found = run([[7]], [2], heard[:1])
        np.testing.assert_array_equal(found, total[1:] + 16)
        assert cache._buffers["past_key_values.0.encoder.key"] is given


def test_the_first_step_of_an_encoder_decoder_takes_all_rows() -> None:
    with open_model(encoder_decoder()) as session:
        cache = session.new_cache(2, 8)
        assert cache is not None
        feeds = {"heard": np.ones((1, 1, 3, 4), np.float32)}
        feeds |= {"decoder_input_ids": np.array([[1]]), "cache_lengths": np.array([0])}
        with pytest.raises(SampleError, match="takes all rows of its cache"):
            cache.step(feeds, ("logits",))


@pytest.mark.parametrize("name", ["nope", "present.0.key"])
def test_only_outputs_that_are_no_caches_can_be_fetched(session: OrtSession, name: str) -> None:
    cache = new_cache(session)
    feeds = {"input_ids": np.array([[1]]), "cache_lengths": np.array([0])}
    with pytest.raises(SampleError, match=f"'{name}' is"):
        cache.step(feeds, ("logits", name))
    assert cache.step(feeds, ("logits",))["logits"].shape[:2] == (1, 1)
