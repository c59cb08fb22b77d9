"""The cache interface is read from the signature, never from the model's family."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.session import Port
from optc.ir.interface import (
    cache_ports,
    complete_feeds,
    past_name,
    ports,
    present_name,
    token_name,
)

IDS = Port("input_ids", "int64", ("batch", "sequence"))
LENGTHS = Port("cache_lengths", "int64", ("batch",))


def past(layer: int, part: str, tokens: int | str = "past", dtype: str = "float32") -> Port:
    return Port(past_name(layer, part), dtype, ("batch", 3, tokens, 64))


def test_graph_values_become_ports() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        any (int64[batch, 8] ids, float16[N, M] x, bool flag) => (float16[N, M] y) {
          y = Identity(x)
        }"""
    )
    assert ports(model.graph.inputs) == (
        Port("ids", "int64", ("batch", 8)),
        Port("x", "float16", ("N", "M")),
        Port("flag", "bool", ()),
    )


def test_an_unnamed_axis_is_a_question_mark() -> None:
    assert ports([ir.val("x", ir.DataType.FLOAT, [None, 2])]) == (Port("x", "float32", ("?", 2)),)


def test_caches_are_found_by_name_and_described_by_shape() -> None:
    found = cache_ports([IDS, LENGTHS, past(0, "key"), past(0, "value", 128, "float16")])
    assert [(c.past, c.present, c.capacity) for c in found] == [
        ("past_key_values.0.key", "present.0.key", None),
        ("past_key_values.0.value", "present.0.value", 128),
    ]
    assert all((c.heads, c.dim) == (3, 64) for c in found)
    assert present_name(0, "key") == found[0].present


@pytest.mark.parametrize(
    "port",
    [
        IDS,
        Port("past_key_values.0.key", "float32", ("batch", 3, 64)),
        Port("past_key_values.0.key", "float32", ("batch", "heads", "past", 64)),
        Port("encoder.past_key_values.0.key", "float32", ("batch", 3, "past", 64)),
    ],
    ids=["tokens", "rank", "heads", "prefix"],
)
def test_anything_else_is_no_cache(port: Port) -> None:
    assert cache_ports([port]) == ()


@pytest.mark.parametrize(("tokens", "expected"), [("past", 0), (16, 16)])
def test_an_empty_cache_has_the_shape_of_its_kind(tokens: int | str, expected: int) -> None:
    (cache,) = cache_ports([past(1, "key", tokens, "float16")])
    empty = cache.empty(2)
    assert empty.shape == (2, 3, expected, 64)
    assert empty.dtype == np.float16
    assert not empty.any()


def test_a_sample_without_a_cache_is_completed_with_an_empty_one() -> None:
    ids = np.ones((2, 5), np.int64)
    feeds = complete_feeds([IDS, LENGTHS, past(0, "key"), past(0, "value")], {"input_ids": ids})
    assert list(feeds) == ["input_ids", "cache_lengths", past_name(0, "key"), past_name(0, "value")]
    np.testing.assert_array_equal(feeds["cache_lengths"], [0, 0])
    assert feeds["past_key_values.0.key"].shape == (2, 3, 0, 64)
    assert feeds["input_ids"] is ids


def test_what_a_sample_names_is_kept() -> None:
    given = {"input_ids": np.ones((1, 1), np.int64), "cache_lengths": np.array([4])}
    feeds = complete_feeds([IDS, LENGTHS, past(0, "key")], given)
    np.testing.assert_array_equal(feeds["cache_lengths"], [4])


def test_a_graph_without_a_cache_gets_nothing_extra() -> None:
    given = {"input_ids": np.ones((1, 1), np.int64)}
    assert complete_feeds([IDS], given) == given


@pytest.mark.parametrize(
    ("given", "batch"),
    [
        ({"table": np.ones((7, 4)), "input_ids": np.ones((2, 5), np.int64)}, 2),
        ({"scale": np.float32(1.0), "input_ids": np.ones((2, 5), np.int64)}, 2),
        ({"scale": np.array(1.0), "features": np.ones((3, 5, 8))}, 3),
        ({"scale": np.array(1.0)}, 1),
        ({}, 1),
    ],
    ids=["tokens lead", "a number before tokens", "first with axes", "only a number", "nothing"],
)
def test_the_batch_is_read_from_the_tokens_or_the_first_array_with_axes(
    given: dict[str, np.ndarray], batch: int
) -> None:
    feeds = complete_feeds([LENGTHS, past(0, "key")], given)
    assert feeds["cache_lengths"].shape == (batch,)
    assert feeds["past_key_values.0.key"].shape[0] == batch


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["input_ids", "cache_lengths"], "input_ids"),
        (["input_ids", "decoder_input_ids"], "decoder_input_ids"),
        (["input_features", "decoder_input_ids"], "decoder_input_ids"),
        (["x"], None),
    ],
)
def test_the_tokens_of_an_encoder_decoder_are_the_decoders(
    names: list[str], expected: str | None
) -> None:
    assert token_name(names) == expected


def test_a_cache_of_what_an_encoder_gives_starts_empty_even_beside_fixed_buffers() -> None:
    own, cross = past(0, "decoder.key", 16), past(0, "encoder.key")
    found = cache_ports([IDS, LENGTHS, own, cross])
    assert [(c.present, c.capacity, c.is_cross) for c in found] == [
        ("present.0.decoder.key", 16, False),
        ("present.0.encoder.key", None, True),
    ]
    tokens = {"input_features": np.ones((3, 4, 5)), "decoder_input_ids": np.ones((2, 1), int)}
    feeds = complete_feeds([LENGTHS, own, cross], tokens)
    assert feeds[own.name].shape == (2, 3, 16, 64)
    assert feeds[cross.name].shape == (2, 3, 0, 64)
