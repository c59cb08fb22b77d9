"""`quant` keeps wide what measurement says must be wide, and no more."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx_ir as ir
import pytest
from quant_graphs import build, quantise, random, reasons

from optc.core.context import Context, Feeds
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_search import fewest
from optc.targets.evaluate import OrtEvaluator

# Two products side by side. Half of the channels that the second reads are 300 times the others,
# and its weights ignore them: they take the int8 grid from the channels that count. They fill
# blocks of their own, as onnxruntime rounds each block of 32 where it multiplies by int8 weights.
K = 64
SIDES = f"""main (float[b, s, {K}] x, float[{K}] gain, float[{K}, {K}] wa, float[{K}, {K}] wb)
=> (float[b, s, {K}] logits) {{
    even = Relu(x)
    odd = Mul(x, gain)
    a = MatMul(even, wa)
    b2 = MatMul(odd, wb)
    sum = Add(a, b2)
    logits = Tanh(sum)
}}"""


def sides(rng: np.random.Generator) -> ir.Model:
    gain = np.ones(K, np.float32)
    gain[K // 2 :] = 300.0
    wa, wb = random(rng, K, K) / 8, random(rng, K, K) / 8
    wb[K // 2 :] = 0.0
    return build(SIDES, {"gain": gain, "wa": wa, "wb": wb})


def batches(rng: np.random.Generator, count: int = 8) -> list[Feeds]:
    return [{"x": random(rng, 1, 16, K)} for _ in range(count)]


def widths(details: dict) -> dict[str, str]:
    return {row["site"]: row["width"] for row in details["sites"]}


def test_a_site_with_outlier_channels_is_kept_wide_and_no_other(rng):
    result = quantise(sides(rng), batches(rng), smooth="off", max_drift=1e-3)
    assert widths(result.details) == {"a": "w8a8", "b2": "w8"}
    assert result.details["drift"] <= 1e-3
    counts, _ = result.notes[0].split("; ")
    assert counts == "1 of 2 sites W8A8, 1 W8 (int8 weights, float activations)"


def test_a_note_names_what_drifts_most_by_itself_and_what_became_of_it(rng):
    result = quantise(sides(rng), batches(rng), smooth="off", max_drift=1e-3)
    costs = {row["site"]: row["cost"] for row in result.details["sites"]}
    worst = f"most drift by itself: b2 {costs['b2']:.1e} (w8), a {costs['a']:.1e} (w8a8)"
    assert result.notes[1:] == (worst,)


def test_products_of_one_activation_are_named_by_the_first_of_them(rng):
    text = f"""main (float[b, s, {K}] x, float[{K}, {K}] wa, float[{K}, {K}] wb)
    => (float[b, s, {K}] logits) {{
        a = MatMul(x, wa)
        c = MatMul(x, wb)
        logits = Add(a, c)
    }}"""
    model = build(text, {name: random(rng, K, K) for name in ("wa", "wb")})
    result = quantise(model, batches(rng), scheme="int8-dynamic")
    first, second = result.details["sites"]
    assert (first["activation"], second["activation"]) == ("x", "x")
    assert result.notes[1] == f"most drift by itself: a {first['cost']:.1e} (w8a8)"


def test_a_drift_beyond_all_numbers_is_written_as_nothing(rng):
    """Float is just below where Exp overflows; rounded weights are above it somewhere."""
    text = f"""main (float[b, s, {K}] x, float[{K}, {K}] w) => (float[b, s, {K}] logits) {{
        h = MatMul(x, w)
        logits = Exp(h)
    }}"""
    x = random(rng, 1, 1, K)
    w = random(rng, K, K)
    model = build(text, {"w": w * (88.6 / (x[0, 0] @ w))})
    result = quantise(model, [{"x": x}] * 4, smooth="off", max_drift=1.0)
    assert None in [trial["drift"] for trial in result.details["trials"]]
    json.dumps(result.details, allow_nan=False)


def test_evening_out_the_channels_saves_it(rng):
    result = quantise(sides(rng), batches(rng), smooth="auto", max_drift=1e-3)
    assert widths(result.details) == {"a": "w8a8", "b2": "w8a8"}
    errors = {row["site"]: row["activation_error"] for row in result.details["sites"]}
    assert errors["b2"] < 0.05
    assert result.notes[0].startswith("2 of 2 sites W8A8; KL")


def test_the_measured_drift_of_the_written_graph_is_the_reported_one(rng):
    model, data = sides(rng), batches(rng)
    before = model.clone()
    result = quantise(model, data, smooth="off", max_drift=1e-3)
    ctx = Context(evaluate=OrtEvaluator())
    held_out = data[6:]
    got = np.concatenate([o["logits"] for o in ctx.evaluate(model, held_out)]).astype(np.float64)
    want = np.concatenate([o["logits"] for o in ctx.evaluate(before, held_out)]).astype(np.float64)
    p, q = (np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True) for a in (want, got))
    divergence = (p * np.log(p / q)).sum(axis=-1).mean()
    assert result.details["drift"] == pytest.approx(divergence, rel=1e-2)
    assert result.details["drift_held_out"]
    assert (result.details["fitted_tokens"], result.details["drift_tokens"]) == (96, 32)


def test_a_looser_limit_never_keeps_more_wide(rng):
    model, data = sides(rng), batches(rng)
    limits = (1e-5, 1e-4, 1e-3, 1e-1)
    runs = [quantise(model.clone(), data, smooth="off", max_drift=m).details for m in limits]
    wide = [sum(row["width"] != "w8a8" for row in details["sites"]) for details in runs]
    assert wide == sorted(wide, reverse=True)
    assert all(d["drift"] <= limit for d, limit in zip(runs, limits, strict=True))


def test_nothing_is_quantised_where_nothing_may_drift(rng):
    model = sides(rng)
    before = sorted(node.op_type for node in model.graph)
    result = quantise(model, batches(rng), max_drift=0.0)
    assert result.sites == ()
    assert set(reasons(result)) == {"a", "b2"}
    assert "int8 drifts more than 0" in reasons(result)["a"]
    assert sorted(node.op_type for node in model.graph) == before


def ruined(rng: np.random.Generator) -> tuple[ir.Model, list[Feeds]]:
    """A column whose one huge entry is never used hides its small entries from an int8 grid."""
    model = sides(rng)
    gain, wa = (model.graph.initializers[n].const_value.numpy().copy() for n in ("gain", "wa"))
    gain[:] = 1.0
    wa[3] = 500.0
    model.graph.initializers["gain"].const_value = ir.tensor(gain, name="gain")
    model.graph.initializers["wa"].const_value = ir.tensor(wa, name="wa")
    data = batches(rng)
    for feeds in data:
        feeds["x"][..., 3] = 0.0
    return model, data


def test_one_weight_that_int8_ruins_stays_float_and_the_other_does_not(rng):
    model, data = ruined(rng)
    result = quantise(model, data, scheme="w8", smooth="off", max_drift=1e-3)
    assert result.sites == ("b2",)
    assert ", 1 float; KL" in result.notes[0]
    assert "its weight is among those that hurt most" in reasons(result)["a"]


RUINED = [{"scheme": "int8", "smooth": "off"}, {"scheme": "int4"}]


@pytest.mark.parametrize("options", RUINED, ids=str)
def test_a_weight_that_wide_ruins_stays_float_and_the_reason_names_the_wide_grid(options, rng):
    model, data = ruined(rng)
    result = quantise(model, data, **options, max_drift=1e-3)
    assert widths(result.details)["a"] == "float"
    assert reasons(result) == {
        "a": "int8 drifts more than 0.001; its weight is among those that hurt most; "
        "raise quant:max-drift to quantise it"
    }


@pytest.mark.parametrize("most", [0, 1])
@pytest.mark.parametrize("options", RUINED, ids=str)
def test_what_may_stay_wide_is_bounded_for_floats_too(options, most, rng):
    model, data = ruined(rng)
    result = quantise(model, data, **options, max_drift=1e-3, max_wide=most)
    found = list(widths(result.details).values())
    assert "float" not in found
    assert found.count("w8") == most
    assert result.details["drift"] > 1e-3


def test_one_sample_serves_for_both_and_the_report_says_so(rng):
    result = quantise(sides(rng), batches(rng, 1))
    assert not result.details["drift_held_out"]
    assert result.notes[0].endswith("on 16 calibration tokens")


def test_without_logits_drift_is_the_relative_error_of_the_outputs(rng):
    text = f"main (float[n, {K}] x, float[{K}, {K}] w) => (float[n, {K}] y) {{ y = MatMul(x, w) }}"
    model = build(text, {"w": random(rng, K, K)})
    data = [{"x": random(rng, 9, K)} for _ in range(2)]
    ctx = Context(evaluate=OrtEvaluator())
    meter = DriftMeter(model, ctx, data, ctx.wants)
    drift = meter.measure(Plan({"w": Grid(8, group=32)}))
    trial = model.clone()
    quantise(trial, data, scheme="w8")
    pairs = zip(ctx.evaluate(trial, data), ctx.evaluate(model, data), strict=True)
    moved = size = 0.0
    for got, want in pairs:
        moved += float(np.square(got["y"] - want["y"]).sum())
        size += float(np.square(want["y"]).sum())
    assert meter.metric == "relative L2 error"
    assert drift == pytest.approx(math.sqrt(moved / size), rel=1e-4)


def test_an_output_that_is_one_number_drifts_too(rng):
    text = f"""main (float[n, {K}] x, float[{K}, {K}] w) => (float total) {{
        h = MatMul(x, w)
        total = ReduceSum<keepdims = 0>(h)
    }}"""
    model = build(text, {"w": random(rng, K, K)})
    data = [{"x": random(rng, 9, K)}]
    ctx = Context(evaluate=OrtEvaluator())
    (want,) = ctx.evaluate(model.clone(), data)
    result = quantise(model, data, scheme="w8")
    (got,) = ctx.evaluate(model, data)
    drift = abs(got["total"] - want["total"]) / abs(want["total"])
    assert result.details["drift"] == pytest.approx(drift, rel=1e-2)


@pytest.mark.parametrize("total", [0, 1, 2, 7, 30])
def test_fewest_finds_the_first_that_fits_from_any_guess(total):
    for answer in range(total + 1):
        for guess in range(-2, total + 3):
            asked: list[int] = []

            def fits(n: int, answer: int = answer, asked: list[int] = asked) -> bool:
                asked.append(n)
                return n >= answer

            assert fewest(total, guess, fits) == answer
            assert len(asked) == len(set(asked))
            assert all(0 <= n < total for n in asked)


def test_a_good_guess_costs_two_calls():
    asked: list[int] = []

    def fits(n: int) -> bool:
        asked.append(n)
        return n >= 40

    assert fewest(200, 40, fits) == 40
    assert asked == [40, 39]
