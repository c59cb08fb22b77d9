"""More tokens than a fixed cache holds are an error that names the limit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from lowered_attention import make_inputs, run_lowered, typed_model
from tiny_generator import DIM, HEADS, tiny_language_model

from optc.core.errors import OptcError, SampleError, UnsupportedError
from optc.core.session import Port
from optc.ir.flash_attention import AttentionSpec
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort
from optc.targets.room import check_room

STATIC = AttentionSpec(0.2, causal=True, cache="static", lengths=True)
SPECS = [STATIC, dataclasses.replace(STATIC, int8=True)]
GROWING = dataclasses.replace(STATIC, cache="concat")


def signature(tokens: int | str) -> list[Port]:
    past = [Port(f"past_key_values.0.{part}", "float32", ("B", 2, tokens, 8)) for part in "kv"]
    return [Port("input_ids", "int64", ("B", "S")), Port("cache_lengths", "int64", ("B",)), *past]


def feeds(lengths: list[int], new: int, past: int = 9) -> dict[str, np.ndarray]:
    tokens = np.zeros((len(lengths), new), np.int64)
    caches = {
        f"past_key_values.0.{part}": np.zeros((len(lengths), 2, past, 8), np.float32)
        for part in "kv"
    }
    return {"input_ids": tokens, "cache_lengths": np.array(lengths), **caches}


def test_rows_that_fill_the_cache_fit() -> None:
    check_room(signature(9), feeds([6, 2], 3))


def test_the_row_and_the_limit_are_named() -> None:
    problem = "row 1 has 7 tokens and gets 3 more, the cache holds 9"
    with pytest.raises(UnsupportedError, match=problem):
        check_room(signature(9), feeds([2, 7], 3))


def test_a_growing_cache_takes_any_number_of_new_tokens() -> None:
    check_room(signature("past"), feeds([9, 0], 10_000))


def test_a_row_cannot_have_more_tokens_than_the_past_that_is_fed() -> None:
    problem = "row 1 has 10 tokens by 'cache_lengths', the past that was given holds 9"
    with pytest.raises(SampleError, match=problem):
        check_room(signature("past"), feeds([9, 10], 1))


@pytest.mark.parametrize("tokens", ["past", 9])
def test_a_negative_length_is_refused(tokens: int | str) -> None:
    with pytest.raises(SampleError, match="row 1 has -1 tokens by 'cache_lengths'"):
        check_room(signature(tokens), feeds([2, -1], 1))


def test_the_smallest_layer_is_the_limit() -> None:
    with pytest.raises(UnsupportedError, match="the cache holds 7"):
        check_room(
            [*signature(9), Port("past_key_values.1.key", "float32", ("B", 2, 7, 8))], feeds([5], 3)
        )


LOWERINGS = {
    "GroupQueryAttention": lambda: Ort().lower(tiny_language_model("concat")),
    "function body": lambda: tiny_language_model("concat"),
    "fixed, GroupQueryAttention": lambda: Ort().lower(tiny_language_model("static", 6)),
    "fixed, function body": lambda: tiny_language_model("static", 6),
}


@pytest.mark.parametrize("kind", LOWERINGS)
@pytest.mark.parametrize(("length", "problem"), [(7, "row 1 has 7 tokens"), (-2, "row 1 has -2")])
def test_it_is_the_same_refusal_whatever_computes_the_attention(
    kind: str, length: int, problem: str
) -> None:
    past = np.zeros((2, HEADS, 6, DIM), np.float32)
    given = {"input_ids": np.ones((2, 1), np.int64), "cache_lengths": np.array([3, length])}
    given |= {f"past_key_values.0.{part}": past for part in ("key", "value")}
    with open_model(LOWERINGS[kind]()) as session, pytest.raises(OptcError, match=problem):
        session.run(given)


@pytest.mark.parametrize("spec", SPECS, ids=["float", "int8"])
@pytest.mark.parametrize("lengths", [[10, 5], [5, 10], [14, 14]])
def test_the_engine_itself_refuses_what_does_not_fit(
    spec: AttentionSpec, lengths: list[int]
) -> None:
    """Also where nobody looks first: the buffer of 9 is neither overrun nor made larger."""
    with pytest.raises(UnsupportedError, match=r"\b9\b"):
        run_lowered(spec, make_inputs(spec, capacity=9, lengths=lengths))


@pytest.mark.parametrize("spec", SPECS, ids=["float", "int8"])
@pytest.mark.parametrize("lengths", [[10, 5], [14, 14]])
def test_the_function_body_refuses_it_too(spec: AttentionSpec, lengths: list[int]) -> None:
    inputs = make_inputs(spec, capacity=9, lengths=lengths)
    model = typed_model(spec, inputs)
    with open_model(model) as session, pytest.raises(UnsupportedError, match=r"\(9\)"):
        session.run(inputs)


@pytest.mark.parametrize("spec", SPECS, ids=["float", "int8"])
def test_a_full_buffer_stays_as_large_as_it_is(spec: AttentionSpec) -> None:
    found = run_lowered(spec, make_inputs(spec, capacity=9, lengths=[9, 4]))
    assert found["present_key"].shape[2] == 9


def test_a_growing_cache_still_grows() -> None:
    found = run_lowered(GROWING, make_inputs(GROWING, past=4, lengths=[7, 5]))
    assert found["present_key"].shape[2] == 7


def test_sharing_a_model_does_not_share_its_room() -> None:
    """Layers with buffers of different size have limits of their own."""
    small, large = (make_inputs(STATIC, capacity=size, lengths=[8, 5]) for size in (7, 9))
    with open_model(Ort().lower(typed_model(STATIC, large))) as session:
        session.run(large)
    with (
        open_model(Ort().lower(typed_model(STATIC, small))) as session,
        pytest.raises(UnsupportedError, match=r"\b7\b"),
    ):
        session.run(small)
