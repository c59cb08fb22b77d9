from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Context
from optc.core.errors import PassContractError, SampleError, UnsupportedError
from optc.ir.interface import past_name, present_name
from optc.targets.evaluate import OrtEvaluator, open_model

X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders are made here, so that a test sees what is left of them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def weights(model: ir.Model) -> tuple[np.ndarray, np.ndarray]:
    w, b = (model.graph.initializers[name].const_value.numpy() for name in ("w", "b"))
    return w, b


def test_an_opened_model_runs_and_leaves_nothing_behind(linear: ir.Model, scratch: Path) -> None:
    w, b = weights(linear)
    with open_model(linear) as session:
        assert len(list(scratch.iterdir())) == 1
        y = session.run({"x": X})["y"]
    np.testing.assert_allclose(y, np.maximum(X @ w, 0) + b, rtol=1e-5)
    assert list(scratch.iterdir()) == []


def test_opening_leaves_the_model_as_it_was(linear: ir.Model) -> None:
    before = ir.to_proto(linear).SerializeToString()
    with open_model(linear):
        pass
    assert ir.to_proto(linear).SerializeToString() == before


def test_an_invalid_graph_is_the_pass_authors_fault(linear: ir.Model, scratch: Path) -> None:
    linear.graph.node("active").attributes["volume"] = ir.AttrInt64("volume", 11)
    with pytest.raises(PassContractError, match="Unrecognized attribute: volume"):
        open_model(linear).__enter__()
    assert list(scratch.iterdir()) == []


def test_a_valid_graph_that_the_runtime_lacks_is_not(scratch: Path) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["acme": 1]> g (float[n] x) => (float[n] y) '
        "{ y = acme.Foo(x) }"
    )
    with pytest.raises(UnsupportedError, match="acme:Foo"):
        open_model(model).__enter__()
    assert list(scratch.iterdir()) == []


def test_the_evaluator_runs_one_sample_at_a_time(linear: ir.Model) -> None:
    taken: list[int] = []

    def samples() -> object:
        for index in range(3):
            taken.append(index)
            yield {"x": X + index}

    results = OrtEvaluator()(linear, samples())
    assert taken == []
    first = next(results)
    assert taken == [0]
    rest = list(results)
    w, b = weights(linear)
    for index, outputs in enumerate([first, *rest]):
        expected = np.maximum((X + index) @ w, 0) + b
        np.testing.assert_allclose(outputs["y"], expected, rtol=1e-5, atol=1e-6)


def test_it_fetches_inputs_weights_intermediates_and_outputs(linear: ir.Model) -> None:
    w, b = weights(linear)
    fetch = ["active", "x", "w", "y", "product", "y"]
    (found,) = OrtEvaluator()(linear, [{"x": X}], fetch=fetch)
    assert list(found) == ["active", "x", "w", "y", "product"]
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["w"], w)
    np.testing.assert_allclose(found["product"], X @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["active"], np.maximum(found["product"], 0))
    np.testing.assert_array_equal(found["y"], found["active"] + b)


def test_fetching_changes_neither_the_graph_nor_its_outputs(linear: ir.Model) -> None:
    before = ir.to_proto(linear).SerializeToString()
    list(OrtEvaluator()(linear, [{"x": X}], fetch=["product"]))
    assert ir.to_proto(linear).SerializeToString() == before


def test_a_value_that_no_pass_gave_a_type_can_be_fetched(linear: ir.Model) -> None:
    assert linear.graph.node("product").outputs[0].type is None
    (found,) = OrtEvaluator()(linear, [{"x": X}], fetch=["product"])
    assert found["product"].dtype == np.float32


def test_what_the_fetched_value_does_not_need_is_not_run(linear: ir.Model) -> None:
    node = linear.graph.node("active")
    linear.graph.insert_after(node, ir.node("Foo", [node.outputs[0]], domain="acme", name="no"))
    linear.graph.opset_imports["acme"] = 1
    (found,) = OrtEvaluator()(linear, [{"x": X}], fetch=["active"])
    assert found["active"].shape == (3, 8)


def test_a_name_that_is_not_in_the_graph_gets_a_suggestion(linear: ir.Model) -> None:
    with pytest.raises(PassContractError, match="'prodct' to fetch; did you mean 'product'"):
        next(OrtEvaluator()(linear, [{"x": X}], fetch=["prodct"]))


def test_a_sample_that_does_not_fit_is_an_error(linear: ir.Model) -> None:
    with pytest.raises(SampleError, match="the input 'x' is missing"):
        next(OrtEvaluator()(linear, [{}]))


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Causal grouped-query attention without a past, in float64."""
    q, k, v = (array.astype(np.float64) for array in (query, key, value))
    groups = q.shape[1] // k.shape[1]
    scores = q @ np.repeat(k, groups, axis=1).swapaxes(2, 3) / np.sqrt(q.shape[3])
    hidden = np.triu(np.ones(scores.shape[2:], bool), 1)
    weights = np.exp(np.where(hidden, -np.inf, scores))
    return weights / weights.sum(-1, keepdims=True) @ np.repeat(v, groups, axis=1)


def test_a_cached_graph_takes_samples_made_for_the_graph_without_cache(cached: ir.Model) -> None:
    rng = np.random.default_rng(1)
    sample = {
        name: rng.standard_normal((2, heads, 5, 8)).astype(np.float32)
        for name, heads in (("query", 4), ("key", 2), ("value", 2))
    }
    (found,) = OrtEvaluator()(cached, [sample])
    np.testing.assert_allclose(found["logits"], attention(**sample), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[present_name(0, "key")], sample["key"])


def test_a_cached_graph_also_takes_a_whole_feed(cached: ir.Model) -> None:
    rng = np.random.default_rng(2)
    whole = {
        name: rng.standard_normal((1, heads, 6, 8)).astype(np.float32)
        for name, heads in (("query", 4), ("key", 2), ("value", 2))
    }
    second = {name: array[:, :, 4:] for name, array in whole.items()} | {
        past_name(0, "key"): whole["key"][:, :, :4],
        past_name(0, "value"): whole["value"][:, :, :4],
        "cache_lengths": np.array([4]),
    }
    (found,) = OrtEvaluator()(cached, [second], fetch=["logits"])
    np.testing.assert_allclose(found["logits"], attention(**whole)[:, :, 4:], rtol=1e-5, atol=1e-6)


def test_it_fits_the_protocol_of_the_context(linear: ir.Model) -> None:
    ctx = Context(evaluate=OrtEvaluator(threads=1))
    assert ctx.evaluate is not None
    assert len(list(ctx.evaluate(linear, [{"x": X}] * 2))) == 2
