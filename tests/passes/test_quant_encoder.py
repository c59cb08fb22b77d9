"""`quant` on an encoder-decoder with a cache: the encoder in its branch is quantised too."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_graphs import VOCABULARY, encoder_decoder, with_cache
from quant_graphs import quantise

from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.ir.verify import verify_model
from optc.passes.kv import KV
from optc.rewrite.calibration import cut_to_cache
from optc.rewrite.quant_sites import is_quantised
from optc.targets.evaluate import OrtEvaluator


@pytest.fixture
def calibration(rng):
    ids = [rng.integers(0, VOCABULARY, (2, 2, 9)) for _ in range(4)]
    return [{"input_ids": said, "decoder_input_ids": answer} for said, answer in ids]


@pytest.mark.parametrize("scheme", ["int8", "w8"])
def test_products_in_the_branch_are_sites_like_all_others(scheme, graph, calibration):
    model = with_cache(graph, encoder_decoder())
    result = quantise(model, calibration, scheme=scheme)
    verify_model(model)
    (node,) = [n for n in model.graph if n.op_type == "If"]
    inside = list(node.attributes["then_branch"].as_graph())
    products = [n for n in [*model.graph, *inside] if n.op_type == "MatMul"]
    assert len(products) == 10
    assert {n.outputs[0].name for n in products} <= set(result.sites)
    assert all(is_quantised(n.inputs[1]) for n in products)
    assert result.refusals == ()
    rounded = [n for n in inside if n.op_type == "QuantizeLinear"]
    assert len(rounded) == (2 if scheme == "int8" else 0)  # of the words, and of what is seen


def test_what_comes_out_is_close_and_the_encoder_is_still_skipped(graph, run, calibration):
    exact, model = (with_cache(graph, encoder_decoder()) for _ in range(2))
    quantise(model, calibration)
    inputs = ports(model.graph.inputs)
    first = complete_feeds(inputs, calibration[0])
    out = run(model, first)
    wanted = run(exact, first)["logits"]
    assert np.abs(out["logits"] - wanted).max() < 0.1 * np.abs(wanted).max()
    crossing = {c.past: out[c.present] for c in cache_ports(inputs) if c.is_cross}
    again = run(model, first | crossing | {"input_ids": np.zeros((2, 9), np.int64)})
    np.testing.assert_array_equal(again["logits"], out["logits"])


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "w8", "int4", "fp8"])
def test_the_graph_is_evaluated_whatever_the_scheme(scheme, graph, calibration):
    exact, model = (with_cache(graph, encoder_decoder()) for _ in range(2))
    assert quantise(model, calibration, scheme=scheme, max_wide=0).rewrites
    wanted, found = (
        next(OrtEvaluator()(m, calibration, fetch=["logits"]))["logits"] for m in (exact, model)
    )
    assert np.abs(found - wanted).max() < 0.5 * np.abs(wanted).max()


def test_samples_longer_than_a_fixed_cache_are_cut_and_the_report_says_so(graph, calibration):
    """Of an encoder-decoder only the decoder's tokens: the encoder has read its text whole."""
    model = with_cache(graph, encoder_decoder(), KV(max=5))
    result = quantise(model, calibration)
    assert result.sites
    note = "calibration samples were cut to 5 tokens, which is what the cache holds: 4 of 4"
    assert note in result.notes
    cut, _ = cut_to_cache(calibration, ports(model.graph.inputs))
    assert [sample["decoder_input_ids"].shape for sample in cut] == [(2, 5)] * 4
    assert [sample["input_ids"].shape for sample in cut] == [(2, 9)] * 4


def test_samples_that_fit_are_what_they_were(graph, calibration):
    model = with_cache(graph, encoder_decoder(), KV(max=9))
    found, notes = cut_to_cache(calibration, ports(model.graph.inputs))
    assert found is calibration
    assert notes == ()
