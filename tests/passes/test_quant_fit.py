"""Grids of activations: factors, margins, and where the division of channels goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quant_graphs import K, build, ops, random

from optc.core.context import Array, Context
from optc.core.errors import SampleError
from optc.ir import streamed
from optc.ir.save import save_model
from optc.rewrite.quant_apply import apply_plan
from optc.rewrite.quant_divide import Divider
from optc.rewrite.quant_fit import Fit, fit, product_error, sample_columns, with_error
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_observe import Observation, Seen, observe
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites
from optc.targets.evaluate import OrtEvaluator


def seen(rows: Array) -> Seen:
    halves = [Observation(np.abs(r).max(axis=0), r) for r in (rows[::2], rows[1::2])]
    return Seen(*halves)


def test_even_channels_are_left_as_they_are(rng):
    rows = rng.uniform(-1, 1, (64, K)).astype(np.float32)
    columns = rng.choice([-1.0, 1.0], (K, 24)).astype(np.float32)
    found = fit(seen(rows), columns, Grid(8), smooth=True)
    assert found.factors is None
    assert found.largest == pytest.approx(np.abs(rows).max(), rel=0.35)


def test_an_outlier_channel_is_divided_and_the_error_falls(rng):
    rows, columns = random(rng, 64, K), random(rng, K, 24)
    rows[:, 5] *= 100
    columns[5] /= 100
    plain = fit(seen(rows), columns, Grid(8), smooth=False)
    smooth = fit(seen(rows), columns, Grid(8), smooth=True)
    assert plain.factors is None
    assert smooth.factors is not None
    assert smooth.factors.argmax() == 5
    assert np.log(smooth.factors).mean() == pytest.approx(0, abs=1e-5)
    assert smooth.error < plain.error / 5
    got = smooth.rounded(rows / smooth.factors) @ (columns * smooth.factors[:, None])
    assert np.linalg.norm(got - rows @ columns) < 2 * smooth.error * np.linalg.norm(rows @ columns)


E4M3 = Grid(8, is_float=True)


def test_e4m3_has_steps_for_an_outlier_channel_that_would_waste_those_of_int8(rng):
    """Its steps are relative: a channel a hundred times the others leaves them theirs."""
    rows, columns = random(rng, 64, K), random(rng, K, 24)
    rows[:, 5] *= 100
    columns[5] /= 100
    integers, floats = (fit(seen(rows), columns, g, smooth=True) for g in (Grid(8), E4M3))
    assert integers.factors is not None
    assert floats.factors is None
    assert floats.dtype == ir.DataType.FLOAT8E4M3FN


def test_the_error_of_e4m3_is_that_of_e4m3_on_both_sides(rng):
    rows, columns = random(rng, 64, K), random(rng, K, 24)
    found = fit(seen(rows), columns, E4M3, smooth=False)
    exact, got = rows @ columns, found.rounded(rows) @ E4M3.rounded(columns.T).T
    error = np.sqrt((np.square(got - exact).sum(axis=1) / np.square(exact).sum(axis=1)).mean())
    assert found.error == pytest.approx(error, rel=0.05)
    assert found.error > 2 * fit(seen(rows), columns, Grid(8), smooth=False).error
    assert with_error(found, seen(rows), columns, E4M3).error == pytest.approx(error, rel=1e-6)


def test_the_error_of_products_is_that_of_the_grid_asked_for(rng):
    rows, columns = random(rng, 64, K), random(rng, K, 24)
    columns[3] = 500.0  # takes the steps of whatever shares its scale
    rows[:, 3] = 0.0
    whole, groups = (product_error(seen(rows), columns, g) for g in (Grid(8), Grid(8, 8)))
    exact, got = rows @ columns, rows @ Grid(8, 8).rounded(columns.T).T
    error = np.sqrt((np.square(got - exact).sum(axis=1) / np.square(exact).sum(axis=1)).mean())
    assert groups == pytest.approx(error, rel=1e-5)
    assert groups < 0.6 * whole


def test_a_range_that_does_not_hold_on_the_other_half_gets_a_margin(rng):
    rows = rng.uniform(-1, 1, (64, K)).astype(np.float32)
    rows[::2] *= 1.25  # every even row lies beyond what the odd rows know
    found = fit(seen(rows), random(rng, K, 24), Grid(8), smooth=False)
    assert found.largest > np.abs(rows).max()


def test_a_dead_activation_has_a_step_of_one_and_no_error(rng):
    found = fit(seen(np.zeros((8, K), np.float32)), random(rng, K, 24), Grid(8), smooth=True)
    assert (found.largest, found.error, found.factors) == (0.0, 0.0, None)
    assert found.scale() == 1.0
    assert found.scale(ir.DataType.FLOAT16).dtype == np.float16


def test_half_precision_gets_a_normal_step():
    assert Fit(1e-6).scale(ir.DataType.FLOAT16) == 1.0
    assert Fit(1e-6).scale() == pytest.approx(1e-6 / 127)


NORMALISED = f"""main (float[b, s, {K}] x, float[{K}] g, float[{K}, {K}] w)
=> (float[b, s, {K}] y) {{
    a = RMSNormalization<axis = -1>(x, g)
    y = MatMul(a, w)
}}"""
SCALED = NORMALISED.replace("RMSNormalization<axis = -1>", "Mul")
GATED = f"""main (float[b, s, {K}] x, float[{K}, {K}] g, float[{K}, {K}] w)
=> (float[b, s, {K}] y) {{
    open = Sigmoid(x)
    up = MatMul(x, g)
    a = Mul(open, up)
    y = MatMul(a, w)
}}"""
PLAIN = f"""main (float[b, s, {K}] x, float[{K}] g, float[{K}, {K}] w) => (float[b, s, {K}] y) {{
    a = Tanh(x)
    t = Mul(a, g)
    u = MatMul(a, w)
    y = Add(t, u)
}}"""
READ_TWICE = SCALED.replace("y = MatMul(a, w)", "u = MatMul(a, w)\ny = Add(a, u)")
CASES = {
    "normalisation": (NORMALISED, 0),
    "product with a constant": (SCALED, 0),
    "product with a layer": (GATED, 0),
    "anything else": (PLAIN, 1),
    "read by others too": (READ_TWICE, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_dividing_channels_does_not_change_what_the_graph_means(case, rng, run):
    text, added = CASES[case]
    shape = (K, K) if case == "product with a layer" else (K,)
    plain = build(text, {"g": random(rng, *shape), "w": random(rng, K, K)})
    apply_plan(plain, find_sites(plain).sites, Plan({"g": Grid()}))  # the layer of case 2
    divided = plain.clone()
    (site,) = find_sites(divided).sites
    factors = np.exp2(rng.integers(-2, 3, K)).astype(np.float32)
    multiplied = site.weight.const_value.numpy() * factors[:, None]
    site.weight.const_value = ir.tensor(multiplied, name="w")
    scales = {n: divided.graph.initializers["g_scale"] for n in divided.graph if "up" in names(n)}
    value = Divider(NodeWriter(divided), scales).divide(site.activation, [site], factors)
    site.node.replace_input_with(0, value)
    assert ops(divided).count("Mul") == ops(plain).count("Mul") + added
    x = {"x": random(rng, 1, 6, K)}
    np.testing.assert_allclose(run(divided, x)["y"], run(plain, x)["y"], rtol=1e-5, atol=1e-5)


def names(node: ir.Node) -> list[str]:
    return [str(output.name) for output in node.outputs]


def test_observation_sees_every_row_for_ranges_and_both_halves(rng):
    model = build(PLAIN, {"g": random(rng, K), "w": random(rng, K, K)})
    data = [{"x": random(rng, 1, 40, K)} for _ in range(3)]
    found = observe(model, {"a": K}, Context(evaluate=OrtEvaluator()), data)["a"]
    active = [np.tanh(feeds["x"][0]) for feeds in data]
    np.testing.assert_allclose(
        found.even.largest, np.abs(np.concatenate(active[::2])).max(0), rtol=1e-6
    )
    np.testing.assert_allclose(found.odd.largest, np.abs(active[1]).max(0), rtol=1e-6)
    np.testing.assert_allclose(found.odd.rows, active[1], rtol=1e-6)


def test_one_sample_is_split_in_two(rng):
    model = build(PLAIN, {"g": random(rng, K), "w": random(rng, K, K)})
    data = [{"x": random(rng, 1, 10, K)}]
    found = observe(model, {"a": K}, Context(evaluate=OrtEvaluator()), data)["a"]
    assert (len(found.even.rows), len(found.odd.rows)) == (5, 5)
    assert not np.array_equal(found.even.rows, found.odd.rows)


def test_an_activation_that_overflows_is_named(rng):
    model = build(PLAIN.replace("Tanh", "Exp"), {"g": random(rng, K), "w": random(rng, K, K)})
    data = [{"x": np.full((1, 2, K), 1000, np.float32)}]
    with pytest.raises(SampleError, match="sample 0 gives NaN or infinity at 'a'"):
        observe(model, {"a": K}, Context(evaluate=OrtEvaluator()), data)


LARGE = 9000  # channels of K inputs: more than the megabyte up to which a tensor is not mapped
BY_AXIS = [
    f"""main (float[n, {K}] x, float[{LARGE}, {K}] w) => (float[n, {LARGE}] y)
    {{ y = Gemm<transB = 1>(x, w) }}""",
    f"""main (float[n, {K}] x, float[{K}, {LARGE}] w) => (float[n, {LARGE}] y)
    {{ y = MatMul(x, w) }}""",
]


@pytest.mark.parametrize("axis", [0, 1])
def test_columns_are_sampled_block_by_block_and_no_weight_is_mapped(
    axis, rng, tmp_path, monkeypatch
):
    columns = random(rng, K, LARGE)
    model = build(BY_AXIS[axis], {"w": columns if axis else columns.T.copy()})
    save_model(model, tmp_path / "model.onnx")
    (site,) = find_sites(ir.load(tmp_path / "model.onnx")).sites
    assert site.axis == axis
    monkeypatch.setattr(streamed, "_BLOCK_BYTES", 4 * K * 700)
    monkeypatch.setattr(np, "memmap", lambda *_: pytest.fail("a weight is mapped"))
    found = sample_columns([site, site], count=6)
    np.testing.assert_array_equal(found, columns[:, [0, 4499, 8999] * 2])
