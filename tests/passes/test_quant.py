"""`quant`: what it quantises, how, what it refuses, and how far the result may be off."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from quant_graphs import C, K, build, linear, ops, quantise, random, reasons, samples

from optc.core.context import Array, Context, Feeds
from optc.core.errors import SampleError, UnsupportedError
from optc.passes.quant import Quant
from optc.targets.evaluate import OrtEvaluator

GEMM = f"""main (float[n, {K}] x, float[{C}, {K}] w, float[{C}] c) => (float[n, {C}] y)
{{ y = Gemm<transB = 1>(x, w, c) }}"""
TIED = f"""main (int64[b, s] ids, float[40, {K}] table) => (float[b, s, 40] logits) {{
    found = Gather(table, ids)
    active = Relu(found)
    flipped = Transpose<perm = [1, 0]>(table)
    logits = MatMul(active, flipped)
}}"""
THREE = f"""main (float[b, s, {K}] x, float[{K}, {C}] wq, float[{K}, {C}] wk, float[{K}, {C}] wv)
=> (float[b, s, {C}] y) {{
    a = Relu(x)
    q = MatMul(a, wq)
    k = MatMul(a, wk)
    v = MatMul(a, wv)
    qk = Mul(q, k)
    y = Mul(qk, v)
}}"""


def exact(model: ir.Model, feeds: Feeds) -> Array:
    """The first output by the operators' definitions; onnxruntime would round activations too."""
    return ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))[0]


def node(model: ir.Model, op: str, index: int = 0) -> ir.Node:
    return [n for n in model.graph if n.op_type == op][index]


def test_a_product_gets_an_int8_weight_per_channel_and_an_int8_activation_per_tensor(rng):
    model = linear(rng)
    result = quantise(model, samples(rng))
    assert result.sites == ("y",)
    assert ops(model) == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]
    left, right = node(model, "MatMul").inputs
    integers, scale = right.producer().inputs
    assert (integers.dtype, list(integers.shape)) == (ir.DataType.INT8, [K, C])
    assert (scale.dtype, list(scale.shape)) == (ir.DataType.FLOAT, [C])
    assert right.producer().attributes["axis"].as_int() == 1
    assert list(left.producer().inputs[1].shape) == []
    assert set(model.graph.initializers) & {"w"} == set()


def test_w8_leaves_the_activation_alone(rng):
    model = linear(rng)
    result = quantise(model, samples(rng), scheme="w8")
    assert result.sites == ("y",)
    assert ops(model) == ["DequantizeLinear", "MatMul"]


def test_a_gemm_with_a_transposed_weight_keeps_its_bias_and_counts_channels_along_axis_0(rng):
    model = build(GEMM, {"w": random(rng, C, K), "c": random(rng, C)})
    result = quantise(model, [{"x": random(rng, 3, K)} for _ in range(2)])
    assert result.sites == ("y",)
    gemm = node(model, "Gemm")
    assert gemm.inputs[1].producer().attributes["axis"].as_int() == 0
    assert list(gemm.inputs[1].producer().inputs[1].shape) == [C]
    assert gemm.inputs[2].name == "c"


def test_a_table_tied_to_the_last_product_stays_one_tensor(rng):
    model = build(TIED, {"table": random(rng, 40, K)})
    result = quantise(model, [{"ids": rng.integers(0, 40, (1, 6))} for _ in range(4)])
    assert result.sites == ("found", "logits")
    kinds = [(v.dtype, list(v.shape)) for v in model.graph.initializers.values()]
    assert kinds.count((ir.DataType.INT8, [40, K])) == 1
    assert (ir.DataType.FLOAT, [40, K]) not in kinds
    table = node(model, "Gather").inputs[0]
    assert node(model, "Transpose").inputs[0] is table
    assert table.producer().attributes["axis"].as_int() == 0


def test_products_that_share_an_activation_share_its_rounding(rng):
    model = build(THREE, {name: random(rng, K, C) for name in ("wq", "wk", "wv")})
    result = quantise(model, samples(rng))
    assert result.sites == ("q", "k", "v")
    assert ops(model).count("QuantizeLinear") == 1
    assert len({n.inputs[0] for n in model.graph if n.op_type == "MatMul"}) == 1


def dequantised(model: ir.Model, name: str, axis: int) -> Array:
    parts = [model.graph.initializers[f"{name}_{part}"].const_value for part in ("int8", "scale")]
    return parts[0].numpy() * np.expand_dims(parts[1].numpy(), 1 - axis)


def half_step(array: Array, axis: int | None = None) -> Array:
    """The most that rounding to 127 steps each way moves a number."""
    return np.abs(array).max(axis=axis, keepdims=True) / 254


def test_w8_is_within_half_a_step_per_weight(rng):
    model = linear(rng)
    w, x = model.graph.initializers["w"].const_value.numpy(), random(rng, 1, 7, K)
    quantise(model, samples(rng), scheme="w8")
    rounded = dequantised(model, "w", axis=1)
    assert (np.abs(rounded - w) <= half_step(w, 0) * 1.001).all()
    np.testing.assert_allclose(exact(model, {"x": x}), x @ rounded, rtol=1e-5, atol=1e-5)


SHARED = {
    "with a lookup": (TIED.replace("Relu(found)", "Mul(found, gain)"), "table", 0),
    "by two activations": (
        f"""main (int64[b, s] ids, float[40, {K}] other, float[{K}, {K}] w, float[{K}] gain)
        => (float[b, s, {K}] logits) {{
            found = Gather(other, ids)
            active = Mul(found, gain)
            left = MatMul(active, w)
            logits = MatMul(left, w)
        }}""",
        "w",
        1,
    ),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_shared_constant_is_not_scaled_for_one_of_its_readers(case, rng):
    text, name, axis = SHARED[case]
    text = text.replace("table)", f"table, float[{K}] gain)", 1)
    gain = np.where(np.arange(K) == 3, 1000, 1).astype(np.float32)  # worth evening out
    shapes = {"table": (40, K), "other": (40, K), "w": (K, K)}
    weights = {n: random(rng, *shape) for n, shape in shapes.items() if f"] {n}" in text}
    model = build(text, {**weights, "gain": gain})
    result = quantise(model, [{"ids": rng.integers(0, 40, (1, 6))} for _ in range(4)])
    assert "logits" in result.sites
    step = half_step(weights[name], 1 - axis)
    assert (np.abs(dequantised(model, name, axis) - weights[name]) <= step * 1.001).all()


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_w8a8_is_within_half_a_step_per_weight_and_activation(kind, rng, run):
    w, bias = random(rng, K, C), random(rng, C)
    if kind == "MatMul":
        model, bias = linear(np.random.default_rng(0)), np.zeros(C, np.float32)
        w = model.graph.initializers["w"].const_value.numpy()
    else:
        model = build(GEMM, {"w": np.ascontiguousarray(w.T), "c": bias})
    shape = (1, 5, K) if kind == "MatMul" else (5, K)
    calibration = [{"x": random(rng, *shape)} for _ in range(3)]
    quantise(model, calibration, smooth="off")
    x = calibration[0]["x"]  # nothing in it is beyond the range that was seen
    step = float(node(model, "QuantizeLinear").inputs[1].const_value.numpy())
    wide = np.broadcast_to(half_step(w, 0), w.shape)
    bound = np.abs(x) @ wide + (step / 2) * (np.abs(w) + wide).sum(axis=0)
    assert (np.abs(run(model, {"x": x})["y"] - (x @ w + bias)) <= bound + 1e-4).all()


REFUSED = {
    "dynamic": (
        "main (float[2, 4] x, float[4, 4] other) => (float[2, 4] y) { y = MatMul(x, other) }",
        {},
        "neither operand is a constant matrix",
    ),
    "left": (
        "main (float[4, 2] x, float[4, 4] w) => (float[4, 2] y) { y = MatMul(w, x) }",
        {"w": (4, 4)},
        "its constant matrix is the left operand",
    ),
    "rank 3": (
        "main (float[2, 3, 4] x, float[2, 4, 4] w) => (float[2, 3, 4] y) { y = MatMul(x, w) }",
        {"w": (2, 4, 4)},
        "its constant has 3 axes, not 2",
    ),
    "scaled gemm": (
        "main (float[2, 4] x, float[4, 4] w) => (float[2, 4] y) { y = Gemm<alpha = 2.0>(x, w) }",
        {"w": (4, 4)},
        "a Gemm with scaling, or with a transposed first operand",
    ),
    "used elsewhere": (
        """main (float[4, 4] x, float[4, 4] w) => (float[4, 4] z) {
            y = MatMul(x, w)
            [adds] z = Add(y, w)
        }""",
        {"w": (4, 4)},
        "its constant is also used by 'adds' (Add), which keeps it in float",
    ),
    "small table": (
        """main (int64[3] ids, float[3, 2] table, float[2, 400] w) => (float[3, 400] z) {
            y = Gather(table, ids)
            z = MatMul(y, w)
        }""",
        {"table": (3, 2), "w": (2, 400)},
        "its table holds less than 1 % of the weights",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_says_why_it_leaves_a_site_alone(case, rng):
    text, shapes, reason = REFUSED[case]
    model = build(text, {name: random(rng, *shape) for name, shape in shapes.items()})
    before = ops(model)
    result = Quant(scheme="w8").run(model, Context(wants=lambda site: site == "y"))
    assert (result.sites, reasons(result)["y"]) == ((), reason)
    assert ops(model) == before


def test_a_weight_that_is_not_finite_stays(rng):
    model = linear(rng)
    broken = random(rng, K, C)
    broken[3, 5] = np.nan
    model.graph.initializers["w"].const_value = ir.tensor(broken, name="w")
    result = Quant(scheme="w8").run(model, Context())
    assert reasons(result) == {"y": "its weight holds NaN or infinity"}


def test_a_site_that_the_caller_left_out_stays(rng):
    model = build(THREE, {name: random(rng, K, C) for name in ("wq", "wk", "wv")})
    result = Quant(scheme="w8").run(model, Context(wants=lambda site: site != "k"))
    assert result.sites == ("q", "v")
    assert reasons(result) == {"k": "the caller left it out"}
    assert model.graph.initializers["wk"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("scheme", ["int8", "w8"])
def test_a_second_run_finds_nothing_to_do(scheme, rng):
    model = build(TIED, {"table": random(rng, 40, K)})
    calibration = [{"ids": rng.integers(0, 40, (1, 6))} for _ in range(4)]
    quantise(model, calibration, scheme=scheme)
    before = ops(model)
    again = quantise(model, calibration, scheme=scheme)
    assert again.sites == ()
    assert set(reasons(again).values()) == {"its weight is quantised already"}
    assert ops(model) == before


@pytest.mark.parametrize("level", [0.0, 3.5, 1e-42], ids=["dead", "constant", "subnormal"])
def test_an_activation_without_spread_stays_finite(level, rng, run):
    model = linear(rng)
    w = model.graph.initializers["w"].const_value.numpy()
    feeds = {"x": np.full((1, 5, K), level, np.float32)}
    quantise(model, samples(rng, x=feeds["x"]))
    got = run(model, feeds)["y"]
    bound = level * np.broadcast_to(half_step(w, 0), w.shape).sum(axis=0)
    assert (np.abs(got - feeds["x"] @ w) <= bound + 1e-4).all()


def test_a_weight_of_zeros_stays_zero(rng, run):
    model = linear(rng)
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((K, C), np.float32), name="w")
    calibration = samples(rng)
    quantise(model, calibration)
    assert not run(model, calibration[0])["y"].any()


def test_calibration_data_that_gives_nan_is_named(rng):
    broken = {"x": np.full((1, 5, K), np.nan, np.float32)}
    with pytest.raises(SampleError, match="calibration sample 1 gives NaN or infinity at 'x'"):
        quantise(linear(rng), [*samples(rng, 1), broken, *samples(rng, 2)])


def test_held_out_data_that_gives_nan_is_named(rng):
    broken = {"x": np.full((1, 5, K), np.nan, np.float32)}
    with pytest.raises(SampleError, match="the float graph gives NaN or infinity"):
        quantise(linear(rng), [*samples(rng, 3), broken])


def test_int8_needs_data_and_a_runtime(rng):
    model = linear(rng)
    with pytest.raises(SampleError, match="use quant:scheme=w8"):
        Quant().requires(model, Context(evaluate=OrtEvaluator()))
    with pytest.raises(UnsupportedError, match="need a runtime"):
        Quant().requires(model, Context(calibration=samples(rng)))


def test_w8_needs_neither_and_says_that_nothing_was_measured(rng):
    model = linear(rng)
    Quant(scheme="w8").requires(model, Context())
    result = Quant(scheme="w8").run(model, Context())
    assert result.sites == ("y",)
    assert result.notes == (
        "1 of 1 sites W8 (int8 weights, float activations); "
        "drift was not measured, there is no calibration data",
    )


def test_weights_shrink_and_are_not_computed_before_they_are_saved(rng):
    text = "main (float[n, 256] x, float[256, 64] w) => (float[n, 64] y) { y = MatMul(x, w) }"
    model = build(text, {"w": random(rng, 256, 64)})
    result = Quant(scheme="w8").run(model, Context())
    size = result.details["weight_bytes"]
    assert size == {"before": 4 * 256 * 64, "after": 256 * 64 + 4 * 64 * 8}  # a scale for 32 inputs
    assert size["before"] / size["after"] > 3.5
    integers = next(v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8)
    assert isinstance(integers.const_value, ir.LazyTensor)
