"""More tokens than a fixed cache holds are an error that names the limit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from lowered_attention import make_inputs, run_lowered, typed_model

from optc.core.errors import SampleError, UnsupportedError
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


def feeds(lengths: list[int], new: int) -> dict[str, np.ndarray]:
    tokens = np.zeros((len(lengths), new), np.int64)
    return {"input_ids": tokens, "cache_lengths": np.array(lengths)}


def test_rows_that_fill_the_cache_fit() -> None:
    check_room(signature(9), feeds([6, 2], 3))


def test_the_row_and_the_limit_are_named() -> None:
    with pytest.raises(UnsupportedError, match="row 1 would have 10 tokens, the cache holds 9"):
        check_room(signature(9), feeds([2, 7], 3))


def test_a_growing_cache_has_no_limit() -> None:
    check_room(signature("past"), feeds([10_000], 3))


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(SampleError, match="has a negative length, -1"):
        check_room(signature("past"), feeds([2, -1], 1))


def test_the_smallest_layer_is_the_limit() -> None:
    with pytest.raises(UnsupportedError, match="the cache holds 7"):
        check_room(
            [*signature(9), Port("past_key_values.1.key", "float32", ("B", 2, 7, 8))], feeds([5], 3)
        )


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
