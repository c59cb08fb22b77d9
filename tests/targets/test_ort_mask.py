"""An engine fed with `attention_mask`: each token gets what it gets in a text of its own."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.core.context import Array, Context
from optc.ir.canonical import canonicalize
from optc.ir.insert import Insert, take_over
from optc.ir.interface import NEW_LENGTHS, cache_ports, ports
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.ort import Ort
from optc.targets.ort_mask import MASK, POSITIONS, take_mask

VOCABULARY = 16
# One layer, 2 heads, learned positions: a wrong position changes the answer.
DECODER = f"""<ir_version: 10, opset_import: ["": 23]>
agraph (int64[batch,seq] input_ids, float[{VOCABULARY},16] table, float[64,16] places,
        float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16,{VOCABULARY}] head)
    => (float[batch,seq,{VOCABULARY}] logits) {{
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    count_1d = Shape<start = 1, end = 2>(input_ids)
    count = Squeeze(count_1d)
    range = Range(zero, count, one)
    first = Constant<value_ints = [0]>()
    positions = Unsqueeze(range, first)
    here = Gather(places, positions)
    words = Gather(table, input_ids)
    x = Add(words, here)
    split = Constant<value_ints = [0, 0, 2, 8]>()
    q2 = MatMul(x, wq)
    k2 = MatMul(x, wk)
    v2 = MatMul(x, wv)
    q4 = Reshape(q2, split)
    k4 = Reshape(k2, split)
    v4 = Reshape(v2, split)
    q = Transpose<perm = [0, 2, 1, 3]>(q4)
    k = Transpose<perm = [0, 2, 1, 3]>(k4)
    v = Transpose<perm = [0, 2, 1, 3]>(v4)
    o = Attention<is_causal = 1>(q, k, v)
    ot = Transpose<perm = [0, 2, 1, 3]>(o)
    merge = Constant<value_ints = [0, 0, 16]>()
    y = Reshape(ot, merge)
    z = Add(x, y)
    logits = MatMul(z, head)
}}"""


def decoder() -> ir.Model:
    """`input_ids` to `logits`, with its weights baked in."""
    rng = np.random.default_rng(1)
    model = ir.from_onnx_text(DECODER)
    canonicalize(model)
    for value in list(model.graph.inputs)[1:]:
        array = rng.standard_normal(value.shape.numpy()).astype(np.float32) / 2
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    return model


def opened(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def cached() -> ir.Model:
    """The decoder as an engine: `cache_lengths`, past and present."""
    model = decoder()
    for step in (Flash(), KV()):
        assert step.run(model, Context()).rewrites == 1
    return Ort().lower(model)


def engine(*, any_padding: bool, positions: bool = False, shared: bool = False) -> ir.Model:
    model = cached()
    take_mask(model, any_padding=any_padding, positions=positions, shared=shared)
    return model


def answering_for_the_last(model: ir.Model) -> ir.Model:
    """The same with the input `new_lengths` [B] and logits [B,1,V]."""
    new = ir.Value(name=NEW_LENGTHS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B"]))
    model.graph.inputs.append(new)
    add = Insert(model, model.graph[-1])
    last = add.node("Sub", [new, add.ints([1])], ir.DataType.INT64)
    index = add.node("Unsqueeze", [last, add.ints([1, 2])], ir.DataType.INT64)
    (logits,) = (value for value in model.graph.outputs if value.name == "logits")
    node = ir.node("GatherND", [logits, index], {"batch_dims": 1})
    model.graph.append(node)
    take_over(logits, node.outputs[0])
    node.replace_input_with(0, logits)
    node.outputs[0].shape = ir.Shape(["batch", 1, VOCABULARY])
    return model


@pytest.fixture(scope="module")
def alone() -> onnxruntime.InferenceSession:
    """The decoder as it was exported: one text, no cache."""
    return opened(decoder())


@pytest.fixture(scope="module")
def anyhow() -> ir.Model:
    return engine(any_padding=True)


@pytest.fixture(scope="module")
def strict() -> ir.Model:
    return engine(any_padding=True, positions=True)


def test_padding_in_front_stops_the_run_where_it_is_not_looked_for() -> None:
    runtime = Runtime(engine(any_padding=False, shared=True), 2, room=8)
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    with refused("attention_mask has padding in front of tokens"):
        runtime.feed(some_tokens(2, 3), mask)


@dataclasses.dataclass
class Runtime:
    """Feeds an engine as transformers does: the mask has a column for all that ever came in.

    `room` is the number of tokens that the cache holds from the start.
    """

    model: ir.Model
    rows: int
    room: int = 0

    def __post_init__(self) -> None:
        self.session = opened(self.model)
        self.caches = cache_ports(ports(self.model.graph.inputs))
        empty = (self.rows, self.caches[0].heads, self.room, self.caches[0].dim)
        self.past = {cache.past: np.zeros(empty, np.float32) for cache in self.caches}
        self.mask = np.zeros((self.rows, 0), np.int64)

    def feed(self, tokens: Array, mask: Array, **more: Array) -> Array:
        self.mask = np.concatenate([self.mask, mask], axis=1)
        feeds = {"input_ids": tokens, MASK: self.mask, **self.past, **more}
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, feeds), strict=True))
        self.past = {cache.past: found[cache.present] for cache in self.caches}
        logits: Array = found["logits"]
        return logits


def some_tokens(*shape: int) -> Array:
    return np.random.default_rng(3).integers(0, VOCABULARY, shape)


def expected(alone, tokens: Array, mask: Array) -> list[Array]:
    """Logits of each row's tokens, in a text that has nothing else in it."""
    rows = [row[here.astype(bool)] for row, here in zip(tokens, mask, strict=True)]
    empty = np.zeros((0, VOCABULARY), np.float32)
    return [alone.run(None, {"input_ids": row[None]})[0][0] if row.size else empty for row in rows]


def test_the_mask_is_taken_in_the_place_of_the_lengths(strict: ir.Model) -> None:
    names = [value.name for value in strict.graph.inputs]
    caches = ["past_key_values.0.key", "past_key_values.0.value"]
    assert names == ["input_ids", MASK, POSITIONS, *caches]
    assert {value.dtype for value in strict.graph.inputs[:3]} == {ir.DataType.INT64}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_padding_may_be_anywhere_in_any_chunk(data, alone, anyhow) -> None:
    rows = data.draw(st.integers(1, 3), "rows")
    widths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4), "chunks")
    bits = st.lists(st.integers(0, 1), min_size=sum(widths), max_size=sum(widths))
    mask = np.array([data.draw(bits, f"row {row}") for row in range(rows)])
    tokens = some_tokens(*mask.shape)
    runtime = Runtime(anyhow, rows)
    ends = np.cumsum(widths)
    found = np.concatenate(
        [
            runtime.feed(tokens[:, end - width : end], mask[:, end - width : end])
            for width, end in zip(widths, ends, strict=True)
        ],
        axis=1,
    )
    for row, right in enumerate(expected(alone, tokens, mask)):
        np.testing.assert_allclose(found[row, mask[row].astype(bool)], right, atol=2e-5)


def test_padding_on_the_left_then_decoding_is_what_each_row_gets_alone(alone, anyhow) -> None:
    mask = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    tokens, later = some_tokens(3, 5), some_tokens(3, 7)[:, 5:]
    runtime = Runtime(anyhow, 3)
    ones = np.ones((3, 1), np.int64)
    last = [runtime.feed(tokens, mask)[:, -1]]
    last += [runtime.feed(later[:, i : i + 1], ones)[:, -1] for i in range(2)]
    everything = np.concatenate([tokens, later], axis=1)
    columns = np.concatenate([mask, ones, ones], axis=1)
    for row, right in enumerate(expected(alone, everything, columns)):
        np.testing.assert_allclose(np.stack(last)[:, row], right[-3:], atol=2e-5)


def test_the_last_column_is_about_the_last_token_also_when_padding_follows(alone, anyhow) -> None:
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    tokens = some_tokens(2, 4)
    found = Runtime(anyhow, 2).feed(tokens, mask)[:, -1]
    right = np.stack([row[-1] for row in expected(alone, tokens, mask)])
    np.testing.assert_allclose(found, right, atol=2e-5)


@pytest.mark.parametrize("any_padding", [True, False])
def test_an_engine_that_answers_for_the_last_token_is_told_which_it_is(any_padding, alone) -> None:
    model = answering_for_the_last(cached())
    take_mask(model, any_padding=any_padding, positions=False, shared=False)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    mask = mask[:, ::-1] if any_padding else mask
    tokens = some_tokens(3, 4)
    found = Runtime(model, 3).feed(tokens, mask)
    assert found.shape == (3, 1, VOCABULARY)
    right = np.stack([row[-1] for row in expected(alone, tokens, mask)])
    np.testing.assert_allclose(found[:, 0], right, atol=2e-5)


def test_taking_tokens_back_is_a_shorter_mask(alone, anyhow) -> None:
    runtime = Runtime(anyhow, 1)
    tokens, other = some_tokens(1, 6), np.array([[7, 1]])
    runtime.feed(tokens, np.ones((1, 6), np.int64))
    runtime.past = {name: past[:, :, :4] for name, past in runtime.past.items()}
    runtime.mask = runtime.mask[:, :4]
    found = runtime.feed(other, np.ones((1, 2), np.int64))
    text = np.concatenate([tokens[:, :4], other], axis=1)
    np.testing.assert_allclose(found[0], expected(alone, text, text >= 0)[0][4:], atol=2e-5)


def test_one_buffer_with_room_serves_all_calls(alone) -> None:
    runtime = Runtime(engine(any_padding=False, shared=True), 2, room=24)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    tokens, later = some_tokens(2, 4), some_tokens(2, 5)[:, 4:]
    first = runtime.feed(tokens, mask)
    second = runtime.feed(later, np.ones((2, 1), np.int64))
    assert {past.shape[2] for past in runtime.past.values()} == {24}
    columns = np.concatenate([mask, [[1], [1]]], axis=1)
    for row, right in enumerate(expected(alone, np.concatenate([tokens, later], 1), columns)):
        np.testing.assert_allclose(first[row, : len(right) - 1], right[:-1], atol=2e-5)
        np.testing.assert_allclose(second[row, 0], right[-1], atol=2e-5)


def test_without_padding_in_front_the_logits_are_not_copied() -> None:
    operators = {node.op_type for node in engine(any_padding=False).graph}
    assert not operators & {"GatherND", "TopK"}


def test_positions_as_transformers_counts_them_are_taken(alone, strict) -> None:
    mask, tokens = np.array([[0, 0, 1, 1], [1, 1, 1, 1]]), some_tokens(2, 4)
    counted = np.where(mask == 1, mask.cumsum(1) - 1, 1)
    runtime = Runtime(strict, 2)
    found = runtime.feed(tokens, mask, position_ids=counted)
    for row, right in enumerate(expected(alone, tokens, mask)):
        np.testing.assert_allclose(found[row, mask[row] == 1], right, atol=2e-5)
    runtime.feed(tokens[:, :1], np.ones((2, 1), np.int64), position_ids=np.array([[2], [4]]))


def refused(reason: str):
    return pytest.raises(Exception, match=f"Name:'{re.escape(reason)}'")


def test_other_positions_stop_the_run_with_the_reason(strict) -> None:
    mask, tokens = np.array([[0, 0, 1, 1], [1, 1, 1, 1]]), some_tokens(2, 4)
    running = np.broadcast_to(np.arange(4), (2, 4))
    with refused("position_ids do not count the ones of attention_mask"):
        Runtime(strict, 2).feed(tokens, mask, position_ids=running)


def test_a_mask_of_the_new_tokens_only_stops_the_run_with_the_reason(anyhow) -> None:
    runtime = Runtime(anyhow, 1)
    runtime.feed(some_tokens(1, 4), np.ones((1, 4), np.int64))
    runtime.mask = runtime.mask[:, :0]
    with refused("attention_mask misses cached tokens"):
        runtime.feed(some_tokens(1, 1), np.ones((1, 1), np.int64))


def test_a_mask_shorter_than_the_tokens_stops_the_run_with_the_reason() -> None:
    runtime = Runtime(engine(any_padding=False, shared=True), 1, room=8)
    with refused("attention_mask misses cached tokens"):
        runtime.feed(some_tokens(1, 4), np.ones((1, 3), np.int64))


def test_a_mask_with_more_tokens_than_the_cache_stops_the_run_with_the_reason(anyhow) -> None:
    runtime = Runtime(anyhow, 1)
    runtime.feed(some_tokens(1, 4), np.ones((1, 4), np.int64))
    runtime.past = {name: past[:, :, :2] for name, past in runtime.past.items()}
    with refused("attention_mask has more tokens than the cache"):
        runtime.feed(some_tokens(1, 1), np.ones((1, 1), np.int64))
