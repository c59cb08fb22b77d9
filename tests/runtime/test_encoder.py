"""What an encoder is given: padded texts with a mask, or arrays; and who takes no encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import pytest
from encoder_graphs import encoder_decoder, fused, with_cache

from optc.core.errors import UnsupportedError, UsageError
from optc.core.session import Port, Session
from optc.passes.kv import KV
from optc.runtime.batching import Batcher
from optc.runtime.encoder import encoder_ports, has_encoder, reads_text, say_ports, text_inputs
from optc.runtime.generate import generate
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort

FromText = Callable[[str], ir.Model]
TEXTS = [[5, 9, 14], [7], [3, 3, 8, 11, 2]]
COUNT = 8
WAYS = {"growing": KV(), "fixed": KV(max=16), "last": KV(logits="last")}


@dataclasses.dataclass
class Signature:
    """Inputs and outputs, and nothing behind them."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...] = (Port("logits", "float32", ("B", "S", 16)),)


def signature(*shape: int | str, mask: bool = False, more: tuple[Port, ...] = ()) -> Signature:
    tokens = Port("input_ids", "int64", shape)
    masks = (Port("attention_mask", "int64", shape),) if mask else ()
    return Signature((tokens, *masks, Port("decoder_input_ids", "int64", ("B", "S")), *more))


@pytest.fixture(params=WAYS)
def cached(request: pytest.FixtureRequest, graph: FromText) -> Iterator[Session]:
    """As it comes out of `kv` and of the lowering, with a mask over the encoder's words."""
    model = with_cache(graph, encoder_decoder(mask=True), WAYS[request.param])
    with open_model(Ort().lower(model)) as session:
        yield session


@pytest.fixture
def plain(graph: FromText) -> Iterator[Session]:
    with open_model(fused(graph, encoder_decoder(mask=True))) as session:
        yield session


def recomputed(plain: Session, text: list[int], start: list[int]) -> tuple[int, ...]:
    """Greedy continuation, the long way: one text, all of it, no padding, no loop of ours."""
    said = list(start)
    for _ in range(COUNT):
        ones = np.ones((1, len(text)), np.int64)
        feeds = {"input_ids": np.array([text]), "attention_mask": ones}
        logits = plain.run(feeds | {"decoder_input_ids": np.array([said])})["logits"]
        said.append(int(logits[0, -1].argmax()))
    return tuple(said[len(start) :])


@pytest.mark.parametrize("start", [[1], [1, 6, 2]], ids=["one token", "three tokens"])
def test_padded_texts_go_on_as_each_does_alone(
    start: list[int], cached: Session, plain: Session
) -> None:
    expected = tuple(recomputed(plain, text, start) for text in TEXTS)
    inputs = text_inputs(cached, TEXTS, padding=13)
    rows = [start] * len(TEXTS)
    assert generate(cached, rows, max_new_tokens=COUNT, inputs=inputs).tokens == expected
    assert generate(plain, rows, max_new_tokens=COUNT, inputs=inputs).tokens == expected
    assert len(set(expected)) > 1


def test_a_row_that_ends_takes_its_text_along(cached: Session, plain: Session) -> None:
    expected = [recomputed(plain, text, [1]) for text in TEXTS]

    def end_first(row: int, token: int) -> bool:
        return row == 0

    inputs = text_inputs(cached, TEXTS)
    found = generate(cached, [[1]] * 3, max_new_tokens=COUNT, inputs=inputs, on_token=end_first)
    assert found.tokens == (expected[0][:1], expected[1], expected[2])


def test_texts_are_padded_on_the_right_and_the_mask_says_where() -> None:
    found = text_inputs(signature("B", "E", mask=True), [[4, 5, 6], [7]], padding=9)
    assert found["input_ids"].tolist() == [[4, 5, 6], [7, 9, 9]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    fixed = text_inputs(signature("B", 4, mask=True), [[4, 5, 6]], padding=9)
    assert fixed["input_ids"].tolist() == [[4, 5, 6, 9]]
    assert fixed["attention_mask"].tolist() == [[1, 1, 1, 0]]
    alone = text_inputs(signature("B", "E"), [[4, 5], [7, 8]])
    assert list(alone) == ["input_ids"]


@pytest.mark.parametrize(
    ("shape", "mask", "texts", "sentence"),
    [
        (("B", "E"), False, [[1, 2], [3]], r"different lengths \(2, 1 tokens\).* no input 'atten"),
        (("B", 3), False, [[1, 2], [3, 4]], "has 2 tokens, the encoder takes exactly 3"),
        (("B", 3), True, [[1, 2, 3, 4]], "has 4 tokens, the encoder takes 3"),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    shape: tuple[int | str, ...], mask: bool, texts: list[list[int]], sentence: str
) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        text_inputs(signature(*shape, mask=mask), texts)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "no prompt was given"),
        ([[]], "the prompt has no tokens"),
        ([[1], []], "prompt 2 has no tokens"),
    ],
)
def test_a_text_without_tokens_is_refused(texts: list[list[int]], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        text_inputs(signature("B", "E"), texts)


def test_an_encoder_of_something_else_is_told_apart_and_described() -> None:
    heard = Port("input_features", "float32", ("B", 80, 3000))
    session = Signature((heard, Port("decoder_input_ids", "int64", ("B", "S"))))
    assert has_encoder(session)
    assert not reads_text(session)
    assert say_ports(encoder_ports(session)) == "input_features float32 [B, 80, 3000]"
    with pytest.raises(UnsupportedError, match=r"no text but input_features float32 \[B, 80"):
        text_inputs(session, [[1]])
    assert not reads_text(signature("B", "E", more=(heard,)))


def test_a_decoder_has_no_encoder() -> None:
    assert not has_encoder(Signature((Port("input_ids", "int64", ("B", "S")),)))
    assert not has_encoder(Signature((Port("decoder_input_ids", "int64", ("B", "S")),)))


def test_a_batcher_refuses_an_encoder_by_name(cached: Session) -> None:
    with pytest.raises(UnsupportedError, match=r"batching is for decoders.* has an encoder; use"):
        Batcher(cached, slots=2, max_tokens=8)
