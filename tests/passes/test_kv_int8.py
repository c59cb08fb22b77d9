"""`kv:dtype=int8`: caches of integers, scaled head by head to what calibration data makes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import COMPANIONS, decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optc.core.base import Promise
from optc.core.context import Context
from optc.core.errors import SampleError, UnsupportedError
from optc.ir.flash_attention import INPUTS, flash_attention_nodes
from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.passes.quant import Quant
from optc.targets.evaluate import OrtEvaluator, open_model
from optc.targets.ort import Ort
from optc.targets.ort_attention import GROUPED, attention_choices

VOCABULARY = 16
INT8 = [KV(dtype="int8"), KV(dtype="int8", max=24), KV(dtype="int8", max=24, logits="last")]
IDS = ["concat", "static", "last"]


def build(graph) -> ir.Model:
    """The decoder with its weights baked in."""
    rng = np.random.default_rng(1)
    model = graph(decoder("rotary"))
    for value in list(model.graph.inputs)[1:]:
        array = rng.standard_normal(tuple(value.shape)).astype(np.float32) / 2
        if value.name == "wk":
            array[:, 8:] *= 30  # the keys of the second head: one scale for both would not do
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    return model


def texts(count: int, seed: int = 3) -> list[dict[str, np.ndarray]]:
    drawn = np.random.default_rng(seed).integers(0, VOCABULARY, (count, 2, 24))
    return [{"input_ids": tokens} for tokens in drawn]


def calibrated(samples) -> Context:
    return Context(OrtEvaluator(), samples)


def with_cache(graph, kv: KV, samples=None) -> ir.Model:
    model, context = build(graph), calibrated(samples or texts(4))
    Flash().run(model, context)
    kv.requires(model, context)
    result = kv.run(model, context)
    kv.ensures(model, result)
    assert result.rewrites == 1, result
    assert result.details["dtype"] == kv.dtype
    return model


def scales(model: ir.Model) -> dict[str, np.ndarray]:
    (node,) = flash_attention_nodes(model)
    named = dict(zip(INPUTS, node.inputs, strict=False))
    return {part: named[f"{part}_scale"].const_value.numpy() for part in ("key", "value")}


def step(session, tokens, length: int, caches):
    data = {"input_ids": tokens, "cache_lengths": np.full(len(tokens), length)} | caches
    out = session.run(complete_feeds(session.inputs, data))
    return out["logits"], {c.past: out[c.present] for c in cache_ports(session.inputs)}


@pytest.mark.parametrize("kv", INT8, ids=IDS)
@pytest.mark.parametrize("lower", [False, True], ids=["body", "lowered"])
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(chunks=st.lists(st.integers(1, 7), min_size=2, max_size=4))
def test_any_chunking_gives_what_one_call_gives(kv, lower, chunks, graph):
    """New keys are read as they are stored, so where a chunk ends makes no difference."""
    model = with_cache(graph, kv)
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (2, min(sum(chunks), 24)))
    with open_model(Ort().lower(model) if lower else model) as session:
        whole, _ = step(session, tokens, 0, {})
        caches, done = {}, 0
        for chunk in chunks:
            new = tokens[:, done : done + chunk]
            if new.size:
                logits, caches = step(session, new, done, caches)
            done += new.shape[1]
    np.testing.assert_allclose(logits[:, -1], whole[:, -1], atol=2e-5)


def with_rounded_keys(graph, found: dict[str, np.ndarray]) -> ir.Model:
    """The decoder without a cache, its keys and values rounded to int8 and back."""
    model = build(graph)
    Flash().run(model, Context())
    (node,) = flash_attention_nodes(model)
    for slot, part in ((1, "key"), (2, "value")):
        steps = ir.node("Constant", [], {"value": ir.tensor(found[part])})
        quantised = ir.node(
            "QuantizeLinear", [node.inputs[slot], steps.outputs[0]], {"axis": 1, "output_dtype": 3}
        )
        again = ir.node("DequantizeLinear", [quantised.outputs[0], steps.outputs[0]], {"axis": 1})
        model.graph.insert_before(node, [steps, quantised, again])
        node.replace_input_with(slot, again.outputs[0])
    return model


@pytest.mark.parametrize("kv", INT8[:2], ids=IDS[:2])
@pytest.mark.parametrize("lower", [False, True], ids=["body", "lowered"])
def test_rounding_keys_and_values_is_all_that_is_done_to_the_numbers(kv, lower, graph, run):
    """On other text than the scales were made for: some of it is cut off."""
    tokens = texts(1, seed=9)[0]["input_ids"]
    model = with_cache(graph, kv, texts(1)[:1])
    whole = run(with_rounded_keys(graph, scales(model)), {"input_ids": tokens})["logits"]
    unrounded = run(build(graph), {"input_ids": tokens})["logits"]
    with open_model(Ort().lower(model) if lower else model) as session:
        logits, _ = step(session, tokens, 0, {})
    np.testing.assert_allclose(logits, whole, atol=2e-5)
    assert np.abs(logits - unrounded).max() > 1e-3


@pytest.mark.parametrize("kv", INT8, ids=IDS)
def test_the_interface_is_that_of_kv_with_integers(kv, graph):
    """A byte for each number, where float32 takes four."""
    model = with_cache(graph, kv)
    floats = with_cache(graph, KV(max=kv.max, logits=kv.logits))
    kinds = {port.name: port.dtype for port in ports(model.graph.inputs)}
    assert kinds == {p.name: kinds[p.name] for p in ports(floats.graph.inputs)}
    outputs = [(port.name, port.dtype) for port in ports(model.graph.outputs)]
    assert outputs == [
        ("logits", "float32"),
        ("present.0.key", "int8"),
        ("present.0.value", "int8"),
    ]
    for cache, wide in zip(
        *(cache_ports(ports(m.graph.inputs)) for m in (model, floats)), strict=True
    ):
        assert cache.dtype == "int8"
        assert 4 * cache.empty(3).nbytes == wide.empty(3).nbytes


def test_a_scale_is_the_largest_magnitude_of_its_head_on_all_samples(graph):
    samples = texts(4)
    model = build(graph)
    Flash().run(model, Context())
    (node,) = flash_attention_nodes(model)
    names = [str(value.name) for value in node.inputs[1:3]]
    seen = list(OrtEvaluator()(model, samples, fetch=names))
    found = scales(with_cache(graph, KV(dtype="int8"), samples))
    for part, name in zip(("key", "value"), names, strict=True):
        largest = np.max([np.abs(got[name]).max(axis=(0, 2, 3)) for got in seen], axis=0)
        np.testing.assert_allclose(found[part], largest / 127, rtol=1e-6)
    assert found["key"][1] > 10 * found["key"][0]


def test_a_head_of_zeros_has_a_scale_all_the_same(graph):
    model = build(graph)
    matrix = next(v for v in model.graph.initializers.values() if v.name == "wv")
    matrix.const_value = ir.tensor(np.zeros((16, 16), np.float32), name="wv")
    Flash().run(model, Context())
    assert KV(dtype="int8").run(model, calibrated(texts(1))).rewrites == 1
    np.testing.assert_allclose(scales(model)["value"], 1 / 127)


def test_the_runtime_has_a_kernel_for_it(graph):
    for kv in INT8:
        (choice,) = attention_choices(Ort().lower(with_cache(graph, kv)))
        assert (choice.kernel, choice.why) == (GROUPED, "")


def test_it_promises_to_be_measured_and_a_float_cache_to_be_exact():
    assert KV(dtype="int8").promised == Promise.MEASURED
    assert KV().promised == KV(max=8, logits="last").promised == Promise.EXACT


def test_quant_may_follow(graph):
    """Products are calibrated on what the integers of the cache make of them."""
    model = with_cache(graph, KV(dtype="int8"))
    quant = Quant(max_drift=1.0)
    result = quant.run(model, calibrated(texts(4)))
    quant.ensures(model, result)
    assert "logits" in result.sites
    with open_model(Ort().lower(model)) as session:
        logits, caches = step(session, texts(1)[0]["input_ids"], 0, {})
    assert np.isfinite(logits).all()
    assert {array.dtype.name for array in caches.values()} == {"int8"}


def test_a_second_run_finds_nothing(graph):
    model = with_cache(graph, KV(dtype="int8"))
    result = KV(dtype="int8").run(model, Context())
    assert (result.rewrites, result.notes) == (0, ("the graph has a cache already",))


def without_cache(graph) -> ir.Model:
    model = build(graph)
    Flash().run(model, Context())
    return model


def test_without_a_runtime_it_cannot_be_calibrated(graph):
    with pytest.raises(UnsupportedError, match="runtime to calibrate"):
        KV(dtype="int8").run(without_cache(graph), Context(calibration=texts(1)))


def test_without_calibration_data_it_cannot_be_calibrated(graph):
    with pytest.raises(SampleError, match="there is none; give --calibration"):
        KV(dtype="int8").run(without_cache(graph), calibrated([]))


def test_a_graph_that_cannot_be_calibrated_is_left_as_it_was(graph):
    model = graph(decoder("rotary", companion=COMPANIONS["padding"]))
    for value in list(model.graph.inputs)[2:]:
        value.const_value = ir.tensor(np.ones(tuple(value.shape), np.float32), name=value.name)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    Flash().run(model, Context())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(SampleError):
        KV(dtype="int8").run(model, calibrated([]))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_calibration_that_overflows_is_named(graph):
    model = without_cache(graph)
    table = next(v for v in model.graph.initializers.values() if v.name == "table")
    table.const_value = ir.tensor(np.full((16, 16), np.inf, np.float32), name="table")
    with pytest.raises(SampleError, match="calibration sample 0 gives NaN or infinity"):
        KV(dtype="int8").run(model, calibrated(texts(1)))
    assert not any(value.name == "cache_lengths" for value in model.graph.inputs)
