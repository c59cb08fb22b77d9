"""What a graph without a cache is fed, and what no graph can be fed with."""

from __future__ import annotations

import numpy as np
import pytest

from optc.core.context import Array, Feeds
from optc.core.errors import UnsupportedError, UsageError
from optc.core.session import Port
from optc.runtime.batching import Batcher
from optc.runtime.encoder import reads_text, text_inputs
from optc.runtime.generate import generate
from optc.runtime.limits import smallest_limit
from optc.runtime.stepper import CachedStepper, RecomputeStepper

LOGITS = (Port("logits", "float32", ("B", "S", 4)),)


class Recorder:
    """Answers token 1 everywhere, and remembers what it was asked."""

    def __init__(self, *inputs: Port):
        self.inputs, self.outputs = inputs, LOGITS
        self.asked: list[dict[str, Array]] = []

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        self.asked.append(dict(feeds))
        tokens = feeds.get("decoder_input_ids", feeds["input_ids"])
        logits = np.zeros((*tokens.shape, 4), np.float32)
        logits[..., 1] = 1
        return {"logits": logits}


MASK = Port("attention_mask", "int64", ("B", "E"))


def ids(*shape: int | str) -> Port:
    return Port("input_ids", "int64", shape or ("B", "S"))


class LastColumn(Recorder):
    """Answers for the last column only, as exports with `logits_to_keep=1` do."""

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        return {"logits": super().run(feeds, fetch)["logits"][:, -1:]}


def test_logits_of_the_last_column_are_not_those_of_a_shorter_row() -> None:
    graph = LastColumn(ids())
    assert generate(graph, [[2, 3], [3, 2]], max_new_tokens=2).tokens == ((1, 1), (1, 1))
    with pytest.raises(UnsupportedError, match="of the last column only"):
        generate(graph, [[2, 3, 2], [3]], max_new_tokens=2)


@pytest.mark.parametrize("token", [-2, 4])
def test_a_token_that_the_model_has_not_is_named(token: int) -> None:
    graph = Recorder(ids())
    with pytest.raises(UsageError, match=f"there is no token {token}, the model has 0 to 3"):
        generate(graph, [[1, token]], max_new_tokens=2)
    assert graph.asked == []


def test_inputs_beside_the_tokens_have_a_row_per_prompt() -> None:
    graph = Recorder(ids(), Port("features", "float32", ("B", 8)))
    features = np.zeros((2, 8), np.float32)
    with pytest.raises(UsageError, match="'features' has 2 rows for 1 prompts"):
        generate(graph, [[1]], max_new_tokens=2, inputs={"features": features})


def test_masks_and_positions_are_made_where_the_graph_wants_them() -> None:
    graph = Recorder(
        ids(),
        Port("attention_mask", "int64", ("B", "S")),
        Port("position_ids", "int64", ("B", "S")),
    )
    generate(graph, [[2, 3, 2], [3]], max_new_tokens=2)
    first, second = graph.asked
    assert first["input_ids"].tolist() == [[2, 3, 2], [3, 0, 0]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert first["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert second["input_ids"].tolist() == [[2, 3, 2, 1], [3, 1, 0, 0]]
    assert second["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_fixed_length_is_filled_up_and_is_the_limit() -> None:
    graph = Recorder(ids("B", 5))
    generate(graph, [[2, 3]], max_new_tokens=4)
    assert [asked["input_ids"].shape for asked in graph.asked] == [(1, 5)] * 4
    with pytest.raises(UnsupportedError, match="need 6 places, the graph's fixed length is 5"):
        generate(graph, [[2, 3]], max_new_tokens=5)
    assert len(graph.asked) == 4


def test_a_fixed_batch_takes_no_other() -> None:
    graph = Recorder(ids(2, "S"))
    with pytest.raises(UnsupportedError, match="takes batches of 2, not of 1"):
        generate(graph, [[2]], max_new_tokens=1)
    assert not graph.asked


def test_an_input_that_nobody_can_fill_is_named() -> None:
    graph = Recorder(ids(), Port("pixels", "float32", ("B", 3, 8, 8)))
    with pytest.raises(UnsupportedError, match="how to fill the input pixels"):
        generate(graph, [[2]], max_new_tokens=1)


def test_places_are_those_of_the_smallest_cache() -> None:
    cache = [
        Port(f"past_key_values.{layer}.key", "float32", ("B", 2, size, 4))
        for layer, size in enumerate((9, 7))
    ]
    assert str(smallest_limit(Recorder(ids(), *cache))) == "the engine's cache holds 7"
    assert smallest_limit(Recorder(ids())) is None


def test_what_an_encoder_takes_is_fed_unchanged_and_its_rows_leave_with_their_row() -> None:
    graph = Recorder(Port("decoder_input_ids", "int64", ("B", "S")), ids("B", "E"))
    heard = np.array([[7, 8, 9], [4, 5, 6]])
    generate(graph, [[2], [3]], max_new_tokens=3, inputs={"input_ids": heard}, on_token=end_first)
    assert [asked["input_ids"].tolist() for asked in graph.asked] == [
        heard.tolist(),
        heard[1:].tolist(),
        heard[1:].tolist(),
    ]
    assert [asked["decoder_input_ids"].tolist() for asked in graph.asked] == [
        [[2], [3]],
        [[3, 1]],
        [[3, 1, 1]],
    ]


@pytest.mark.parametrize("cached", [False, True])
def test_an_array_without_rows_stays_when_rows_leave(cached: bool) -> None:
    graph = Recorder(ids(), Port("cache_lengths", "int64", ("B",)))
    inputs = {"scale": np.array(0.5, np.float32), "kinds": np.array([7, 8])}
    made = CachedStepper(graph, 2, 4, inputs=inputs) if cached else None
    stepper = made or RecomputeStepper(graph, 2, inputs=inputs)
    stepper.feed([[2], [3]])
    stepper.keep([1])
    stepper.feed([[1]])
    assert [asked["scale"].tolist() for asked in graph.asked] == [0.5, 0.5]
    assert [asked["kinds"].tolist() for asked in graph.asked] == [[7, 8], [8]]


def test_a_decoder_beside_an_encoder_is_told_its_own_mask_and_positions() -> None:
    names = ("decoder_attention_mask", "decoder_position_ids")
    own = [Port(name, "int64", ("B", "S")) for name in ("decoder_input_ids", *names)]
    graph = Recorder(*own, ids("B", "E"), MASK)
    assert reads_text(graph)
    inputs = text_inputs(graph, [[2, 3, 2], [3]])
    generate(graph, [[2], [2]], max_new_tokens=2, inputs=inputs)
    first, second = graph.asked
    assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert [first[name].tolist() for name in names] == [[[1], [1]], [[0], [0]]]
    assert [second[name].tolist() for name in names] == [[[1, 1]] * 2, [[0, 1]] * 2]


def test_the_encoders_mask_is_not_made_of_the_decoders_tokens() -> None:
    graph = Recorder(Port("decoder_input_ids", "int64", ("B", "S")), ids("B", "E"), MASK)
    heard = {"input_ids": np.array([[2, 3]])}
    with pytest.raises(UnsupportedError, match="how to fill the input attention_mask"):
        generate(graph, [[2]], max_new_tokens=1, inputs=heard)


def end_first(row: int, token: int) -> bool:
    return row == 0


def test_a_batcher_takes_no_encoder_decoder_and_says_so() -> None:
    own, given = (
        Port(f"past_key_values.0.{side}.key", "float32", ("B", 2, side, 4))
        for side in ("decoder", "encoder")
    )
    lengths = Port("cache_lengths", "int64", ("B",))
    heard = Port("input_features", "float32", ("B", 80, 3000))
    tokens = Port("decoder_input_ids", "int64", ("B", "S"))
    with pytest.raises(UnsupportedError, match="batching is for decoders, and this engine has an"):
        Batcher(Recorder(heard, tokens, lengths, own, given), slots=1, max_tokens=8)
