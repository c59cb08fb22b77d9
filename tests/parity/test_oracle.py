"""Inputs made from a signature, and the graph's own answers to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from tiny_lm import OrtModel, cached_lm, open_model, plain_lm

from optc.core.errors import SampleError, UnsupportedError
from optc.ir.interface import ports
from optc.ir.reference import Reference
from optc.parity.compare import compare
from optc.parity.oracle import make_reference
from optc.parity.signature import InputMaker, table_rows
from optc.parity.writer import Writer

HEADER = '<ir_version: 11, opset_import: ["": 24]>'


def graph(text: str) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER} {text}")


def test_the_reference_fits_the_graph_and_says_where_it_is_from(reference: Reference) -> None:
    model = plain_lm()
    assert reference.source == "graph"
    assert reference.note == "Texts that the input graph wrote itself, seed 1."
    reference.check(ports(model.graph.inputs), ports(model.graph.outputs), "oracle")


def test_outputs_are_the_graphs_own(reference: Reference) -> None:
    session = OrtModel(plain_lm())
    for sample in reference.samples:
        logits = session.run(sample.inputs)["logits"]
        np.testing.assert_array_equal(sample.outputs["logits"], logits)


def test_several_shapes_and_valid_tokens(reference: Reference) -> None:
    shapes = {sample.inputs["input_ids"].shape for sample in reference.samples}
    assert len(shapes) == 4
    assert {batch for batch, _ in shapes} == {1, 2, 3}
    for sample in reference.samples:
        ids = sample.inputs["input_ids"]
        assert 0 <= ids.min() <= ids.max() < 32
        assert len(np.unique(ids)) > 4


def test_the_same_seed_gives_the_same_reference() -> None:
    first, second = (make_reference(plain_lm(), open_model, seed=3) for _ in range(2))
    other = make_reference(plain_lm(), open_model, seed=4)
    for a, b, c in zip(first.samples, second.samples, other.samples, strict=True):
        np.testing.assert_array_equal(a.inputs["input_ids"], b.inputs["input_ids"])
        assert (a.inputs["input_ids"] != c.inputs["input_ids"]).any()


def test_calibration_data_is_made_too_and_is_not_what_is_judged(reference: Reference) -> None:
    assert len(reference.calibration) == 8
    first = reference.calibration[0]["input_ids"]
    judged = reference.samples[0].inputs["input_ids"]
    assert first.shape == judged.shape
    assert (first != judged).any()


def test_texts_are_drawn_from_the_models_own_distribution() -> None:
    """Their mean negative log-likelihood is the mean entropy, far below that of random tokens."""
    model = plain_lm()
    session = OrtModel(model)
    writer = Writer.of(model, session, seed=0)
    assert writer is not None
    ids = np.stack(writer.texts(64, 24))
    logits = session.run({"input_ids": ids})["logits"].astype(np.float64)[:, :-1]
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -(np.exp(scores) * scores).sum(-1).mean()
    likelihood = -np.take_along_axis(scores, ids[:, 1:, None], -1).mean()
    assert likelihood == pytest.approx(entropy, rel=0.05)
    assert entropy < 0.9 * np.log(32)


def test_judged_samples_and_calibration_use_different_texts(reference: Reference) -> None:
    judged = {tuple(row[:7]) for s in reference.samples for row in s.inputs["input_ids"]}
    others = {tuple(row[:7]) for feeds in reference.calibration for row in feeds["input_ids"]}
    assert len(judged) == len(others) == 4
    assert not judged & others


def test_a_causal_model_gets_greedy_continuations(reference: Reference) -> None:
    assert [len(prompt) for prompt in reference.prompts] == [5, 9, 7]
    assert [len(row) for row in reference.continuations] == [12, 12, 12]


def test_a_model_that_sees_later_tokens_gets_none_and_no_perplexity() -> None:
    model = plain_lm(causal=False)
    reference = make_reference(model, open_model)
    assert reference.note == "Random inputs made from the signature, seed 0."
    assert reference.prompts == ()
    metrics = compare(OrtModel(model), reference)
    assert metrics.top1 == 1
    assert metrics.ppl_ratio is None


def test_a_graph_with_a_cache_is_asked_with_an_empty_one() -> None:
    reference = make_reference(cached_lm(), open_model, seed=1)
    plain = make_reference(plain_lm(), open_model, seed=1)
    assert set(reference.samples[0].inputs) == {"input_ids"}
    assert set(reference.samples[0].outputs) == {"logits"}
    for a, b in zip(reference.continuations, plain.continuations, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_full_cache_ends_the_continuation() -> None:
    reference = make_reference(cached_lm(capacity=40), open_model, new_tokens=100)
    assert all(len(row) < 100 for row in reference.continuations)


ENCODER = """
enc (int64[B,S] input_ids, int64[B,S] attention_mask, int64[B,S] token_type_ids,
     int64[B,S] position_ids, float[B,S,4] extra, bool[S] keep, float[D,D] scores)
  => (float[B,S,4] y)
<float[9,4] words, float[2,4] types, float[30,4] places> {
  a = Gather (words, input_ids)
  t32 = Cast <to = 6> (token_type_ids)
  b = Gather (types, t32)
  c = Gather (places, position_ids)
  y = Sum (a, b, c, extra)
}"""


def test_every_kind_of_input_gets_what_it_stands_for() -> None:
    maker = InputMaker(graph(ENCODER))
    for index in range(4):
        made = maker.make(index, 0, 0)
        batch, tokens = made["input_ids"].shape
        assert made["input_ids"].max() <= 8
        assert set(np.unique(made["token_type_ids"])) <= {0, 1}
        assert made["attention_mask"].shape == (batch, tokens)
        np.testing.assert_array_equal(made["position_ids"][-1], np.arange(tokens))
        assert made["extra"].shape == (batch, tokens, 4)
        assert made["extra"].dtype == np.float32
        assert made["keep"].shape == (tokens,)
        assert made["keep"].all()
        assert len(set(made["scores"].shape)) == 1


def test_masks_hide_the_ends_of_rows_in_every_second_sample() -> None:
    maker = InputMaker(graph(ENCODER))
    for index in range(8):
        mask = maker.make(index, 0, 0)["attention_mask"]
        assert mask[:, 0].all()
        assert (np.diff(mask, axis=1) <= 0).all()
        assert mask[0].all()
        hidden = (mask == 0).any(axis=1)
        assert hidden[1:].all() if index % 2 else not hidden.any()


def test_a_single_row_is_padded_too_and_a_square_mask_is_not() -> None:
    text = "g (int64[1,S] attention_mask, bool[S,S] causal_mask) => (int64[1,S] y)"
    made = InputMaker(graph(text + " { y = Neg (attention_mask) }")).make(1, 0, 0)
    assert 0 < made["attention_mask"].sum() < made["attention_mask"].size
    assert made["causal_mask"].all()


MASKED = """
masked (float[B,S,4] x, int64[B,S] attention_mask) => (float[B,S,4] y) {
  m = Cast <to = 1> (attention_mask)
  ones = Constant <value_ints = [-1]> ()
  w = Unsqueeze (m, ones)
  h = Mul (x, w)
  axes = Constant <value_ints = [1]> ()
  total = ReduceSum (h, axes)
  y = Add (h, total)
}"""


def test_losing_the_mask_is_seen_and_other_values_at_padding_are_not() -> None:
    model = graph(MASKED)
    reference = make_reference(model, open_model)
    lost = graph(MASKED.replace("h = Mul (x, w)", "h = Identity (x)"))
    padding = graph(MASKED.replace("y = Add (h, total)", "y = Add (x, total)"))
    assert compare(OrtModel(model), reference).max_abs == 0
    assert compare(OrtModel(lost), reference).max_abs > 0.1
    assert compare(OrtModel(padding), reference).max_abs == 0


@pytest.mark.parametrize(
    ("nodes", "rows"),
    [
        ("y = Gather (table, x)", 10),
        ("y = Gather <axis = 1> (table, x)", None),
        ("u = Unsqueeze (x, one)  c = Cast <to = 6> (u)  y = Gather (table, c)", 10),
        ("p = Add (x, two)  y = Gather (table, p)", 8),
        ("a = Gather (small, x)  y = Gather (table, x)", 4),
        ("y = Gather <axis = -2> (table, x)", 10),
        ("n = Not (m)  k = Where (n, x, one)  y = Gather (table, k)", 10),
        ("f = Cast <to = 1> (x)  y = Mul (f, f)", None),
        ("c = CumSum (x, zero)  y = Gather (table, c)", None),
    ],
)
def test_the_range_of_an_index_is_found_by_following_it(nodes: str, rows: int | None) -> None:
    model = graph(
        f"""g (int64[N] x, bool[N] m) => (float[?] y)
        <float[10,5] table, float[4,5] small, int64[1] one = {{1}}, int64 two = {{2}},
         int64 zero = {{0}}> {{ {nodes} }}"""
    )
    assert table_rows(model.graph.inputs[0]) == rows


def test_an_expression_of_axis_names_is_what_it_comes_to() -> None:
    text = "g (float[B,tokens] x, float[B,2,past,4] kv, float[B,?] m) => (float[B] y) {"
    model = graph(text + " y = ReduceSum (x) }")
    model.graph.inputs[2].shape = ir.Shape(["B", "past + tokens"])
    made = InputMaker(model).make(1, 0, 0)
    assert made["m"].shape[1] == made["x"].shape[1] + made["kv"].shape[2]


def test_axes_without_a_name_are_equal_by_position() -> None:
    model = graph("g (float[?,?] a, float[?,?] b) => (float[?,?] y) { y = Add (a, b) }")
    for value in model.graph.inputs:
        value.shape = ir.Shape([None, None])
    reference = make_reference(model, open_model)
    for sample in reference.samples:
        assert sample.inputs["a"].shape == sample.inputs["b"].shape


@contextlib.contextmanager
def batch_of_one(model: ir.Model) -> Iterator[OrtModel]:
    session = OrtModel(model)
    run = session.run

    def picky(feeds, fetch=None):
        if len(next(iter(feeds.values()))) != 1:
            raise UnsupportedError("only one row, please")
        return run(feeds, fetch)

    session.run = picky  # type: ignore[method-assign]
    yield session


def test_shapes_that_the_graph_refuses_are_left_out_and_counted() -> None:
    reference = make_reference(plain_lm(), batch_of_one)
    assert len(reference.samples) == 2
    assert reference.note.endswith("The graph refused 2 of 4 shapes.")


def test_a_graph_that_refuses_everything_is_one_sentence() -> None:
    @contextlib.contextmanager
    def never(model: ir.Model) -> Iterator[OrtModel]:
        session = OrtModel(model)

        def refuse(feeds, fetch=None):
            raise UnsupportedError("no")

        session.run = refuse  # type: ignore[method-assign]
        yield session

    with pytest.raises(SampleError, match=r"takes none of the inputs.*--reference"):
        make_reference(plain_lm(), never)


def test_a_graph_that_answers_nan_is_no_oracle() -> None:
    model = graph("g (float[N] x) => (float[N] y) { z = Sub (x, x)  y = Div (z, z) }")
    with pytest.raises(SampleError, match="output 'y' has NaN in it; give a reference"):
        make_reference(model, open_model)


def test_nan_at_padding_is_no_matter() -> None:
    nodes = "y = Div (h, w)"  # 0 / 0 where the mask is 0
    model = graph(MASKED.replace("y = Add (h, total)", nodes))
    reference = make_reference(model, open_model)
    assert any(np.isnan(sample.outputs["y"]).any() for sample in reference.samples)
    assert compare(OrtModel(model), reference).faults == ()


def test_an_input_of_unknown_rank_is_one_sentence() -> None:
    model = graph("g (float[N] x) => (float[N] y) { y = Neg (x) }")
    model.graph.inputs[0].shape = None
    with pytest.raises(SampleError, match="the rank of 'x' is not known; give a reference"):
        make_reference(model, open_model)


def test_lengths_that_are_named_apart_may_have_to_be_equal() -> None:
    """Exporters name the length of texts and that of their mask apart at times."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 23]>
    agraph (float[b,s] x, int64[c,t] mask) => (float[b,s] y) {
        kept = Cast<to = 1>(mask)
        y = Mul(x, kept)
    }""")
    reference = make_reference(model, open_model)
    shapes = {(s.inputs["x"].shape, s.inputs["mask"].shape) for s in reference.samples}
    assert len(reference.samples) == 4
    assert all(first == second for first, second in shapes)
