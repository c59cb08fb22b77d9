"""`quant`: what each scheme writes, and how close it comes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from quant_graphs import build, ops, quantise, random

from optc.core.context import Array, Context, Feeds
from optc.core.errors import SampleError
from optc.parity.site_plot import site_plot
from optc.passes.quant import Quant
from optc.targets.evaluate import OrtEvaluator

K, C = 96, 40
LINEAR = f"""main (float[b, s, {K}] x, float[{K}, {C}] w) => (float[b, s, {C}] y)
{{ y = MatMul(x, w) }}"""
TIED = f"""main (int64[b, s] ids, float[40, {K}] table, float[{K}, {K}] w)
=> (float[b, s, 40] logits) {{
    found = Gather(table, ids)
    inner = MatMul(found, w)
    active = Relu(inner)
    flipped = Transpose<perm = [1, 0]>(table)
    logits = MatMul(active, flipped)
}}"""


def _linear(rng: np.random.Generator) -> ir.Model:
    return build(LINEAR, {"w": random(rng, K, C)})


def _tied(rng: np.random.Generator) -> ir.Model:
    return build(TIED, {"table": random(rng, 40, K), "w": random(rng, K, K) / 10})


def _mixed(rng: np.random.Generator, count: int = 8, rows: int = 24) -> list[Feeds]:
    """Activations whose channels go together, as real ones do."""
    mixing = random(np.random.default_rng(7), 12, K)
    return [
        {"x": (random(rng, 1, rows, 12) @ mixing + random(rng, 1, rows, K) / 10)}
        for _ in range(count)
    ]


def _ids(rng: np.random.Generator, count: int = 4) -> list[Feeds]:
    return [{"ids": rng.integers(0, 40, (1, 12))} for _ in range(count)]


def exact(model: ir.Model, feeds: Feeds) -> Array:
    return ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))[0]


def weight(model: ir.Model, name: str) -> tuple[ir.DataType, list[int], ir.Node]:
    """Type and shape of the steps, and the node that reads them."""
    value = next(v for n, v in model.graph.initializers.items() if n.startswith(f"{name}_"))
    node = next(n for n in model.graph if n.op_type == "DequantizeLinear" and value in n.inputs)
    steps = node.inputs[0]
    return steps.dtype, [int(size) for size in steps.shape], node


@pytest.mark.parametrize(
    ("options", "dtype", "group"),
    [
        ({}, ir.DataType.UINT4, 32),
        ({"group": 16}, ir.DataType.UINT4, 16),
        ({"group": 64}, ir.DataType.UINT4, 64),
        ({"group": 128}, ir.DataType.UINT4, 128),
        ({"symmetric": True}, ir.DataType.INT4, 32),
    ],
)
def test_four_bits_have_a_scale_for_each_group_and_a_zero_point_unless_symmetric(
    options, dtype, group, rng
):
    model = _linear(rng)
    result = quantise(model, _mixed(rng), scheme="int4", **options)
    assert result.sites == ("y",)
    assert ops(model) == ["DequantizeLinear", "MatMul"]
    found, shape, node = weight(model, "w")
    assert (found, shape) == (dtype, [K, C])
    assert node.attributes["axis"].as_int() == 0
    assert node.attributes["block_size"].as_int() == group
    assert [int(size) for size in node.inputs[1].shape] == [-(-K // group), C]
    assert len(node.inputs) == (2 if dtype == ir.DataType.INT4 else 3)


def test_a_tied_table_stays_one_tensor_of_eight_bits(rng):
    model = _tied(rng)
    quantise(model, _ids(rng), scheme="int4")
    dtype, shape, node = weight(model, "table")
    assert (dtype, shape) == (ir.DataType.INT8, [40, K])
    readers = {user.op_type for user, _ in node.outputs[0].uses()}
    assert readers == {"Gather", "Transpose"}
    assert weight(model, "w")[0] == ir.DataType.UINT4


def test_a_table_may_have_four_bits_too(rng):
    model = _tied(rng)
    quantise(model, _ids(rng), scheme="int4", vocabulary=4)
    assert weight(model, "table")[0] == ir.DataType.UINT4


def test_groups_of_a_table_divide_its_rows(rng):
    """A lookup in blocks has no short last block: 96 is no multiple of 64."""
    model = _tied(rng)
    quantise(model, _ids(rng), scheme="int4", vocabulary=4, group=64)
    assert weight(model, "table")[2].attributes["block_size"].as_int() == 32
    assert weight(model, "w")[2].attributes["block_size"].as_int() == 64


def test_a_range_for_each_token_is_standard_operators_and_needs_no_calibration(rng):
    model = _linear(rng)
    result = Quant(scheme="int8-dynamic").run(model, Context())
    assert result.sites == ("y",)
    assert ops(model).count("ReduceMax") == 1
    assert "DynamicQuantizeLinear" not in ops(model)
    assert [n.op_type for n in model.graph if n.op_type == "Cast"] == ["Cast", "Cast"]


def test_a_loud_token_costs_a_quiet_one_nothing(rng):
    x = random(rng, 1, 4, K)
    x[0, 0] *= 1e4
    plain = exact(_linear(np.random.default_rng(0)), {"x": x})
    errors = {}
    for scheme in ("int8-dynamic", "int8"):
        model = _linear(np.random.default_rng(0))
        quantise(model, [{"x": x}, {"x": x}], scheme=scheme, smooth="off")
        moved = exact(model, {"x": x}) - plain
        errors[scheme] = np.linalg.norm(moved[0, 1]) / np.linalg.norm(plain[0, 1])
    assert errors["int8-dynamic"] < 0.02
    assert errors["int8"] > 0.5


@pytest.mark.parametrize("level", [0.0, 1e-42])
def test_a_token_of_nothing_stays_finite(level, rng):
    model = _linear(rng)
    Quant(scheme="int8-dynamic").run(model, Context())
    x = np.full((1, 3, K), level, np.float32)
    (got,) = OrtEvaluator()(model, [{"x": x}])
    assert not got["y"].any()


def test_fp8_has_e4m3_steps_on_both_sides(rng):
    model = _linear(rng)
    data = _mixed(rng)
    plain = exact(model, data[0])
    quantise(model, data, scheme="fp8", smooth="off")
    assert weight(model, "w")[0] == ir.DataType.FLOAT8E4M3FN
    down = next(n for n in model.graph if n.op_type == "QuantizeLinear")
    assert down.inputs[2].dtype == ir.DataType.FLOAT8E4M3FN
    (got,) = OrtEvaluator()(model, data[:1])
    error = np.linalg.norm(got["y"] - plain) / np.linalg.norm(plain)
    assert 0.005 < error < 0.05  # three bits of mantissa: 3 % each at most, random in sign


def test_solving_on_activations_that_go_together_beats_rounding(rng):
    data, held = _mixed(rng), _mixed(np.random.default_rng(99), 2)
    errors = {}
    for method in ("rtn", "awq", "gptq", "awq-gptq"):
        model = _linear(np.random.default_rng(0))
        plain = exact(model, held[0])
        quantise(model, data, scheme="int4", method=method)
        errors[method] = np.linalg.norm(exact(model, held[0]) - plain) / np.linalg.norm(plain)
    assert errors["gptq"] < 0.6 * errors["rtn"]
    assert errors["awq-gptq"] < 0.6 * errors["rtn"]
    assert errors["awq"] < errors["rtn"]


def test_a_method_that_needs_data_says_so(rng):
    with pytest.raises(SampleError, match="the method gptq needs calibration data"):
        quantise(_linear(rng), [], scheme="int4", method="gptq")


def test_calibration_that_gives_nan_is_named(rng):
    data = _mixed(rng)
    data[1]["x"][0, 0, 0] = np.nan
    with pytest.raises(SampleError, match="calibration sample 1 gives NaN or infinity"):
        quantise(_linear(rng), data, scheme="int4")


def test_a_dead_channel_and_a_dead_activation_leave_steps_finite(rng):
    for level in (0.0, 1.0):
        data = _mixed(rng)
        for feeds in data:
            feeds["x"][..., :8] = 0.0
            feeds["x"] *= level
        model = _linear(rng)
        quantise(model, data, scheme="int4")
        (got,) = OrtEvaluator()(model, [{"x": random(rng, 1, 3, K)}])
        assert np.isfinite(got["y"]).all()


def test_the_same_data_give_the_same_steps(rng):
    data = _mixed(rng)
    steps = []
    for _ in range(2):
        model = _linear(np.random.default_rng(0))
        quantise(model, data, scheme="int4")
        steps.append(weight(model, "w")[2].inputs[0].const_value.tobytes())
    assert steps[0] == steps[1]


@pytest.mark.parametrize("scheme", ["int4", "int8-dynamic", "fp8"])
def test_a_second_run_finds_nothing_to_do(scheme, rng):
    model = _linear(rng)
    quantise(model, _mixed(rng), scheme=scheme)
    again = quantise(model, _mixed(rng), scheme=scheme)
    assert again.sites == ()
    assert [r.reason for r in again.refusals] == ["its weight is quantised already"]


LIMIT = 0.01
SIDES = f"""main (float[b, s, {K}] x, float[{K}, {K}] wa, float[{K}, {K}] wb)
=> (float[b, s, {K}] logits) {{
    r = Relu(x)
    a = MatMul(r, wa)
    t = Tanh(x)
    c = MatMul(t, wb)
    logits = Add(a, c)
}}"""


def test_what_hurts_most_stays_at_eight_bits(rng):
    wa, wb = random(rng, K, K) / 8, random(rng, K, K) / 2
    data = [{"x": random(rng, 1, 32, K)} for _ in range(6)]
    model = build(SIDES, {"wa": wa, "wb": wb})
    result = quantise(model, data, scheme="int4", method="rtn", max_drift=LIMIT)
    widths = {row["site"]: row["width"] for row in result.details["sites"]}
    assert widths == {"a": "w4", "c": "w8"}
    costs = {row["site"]: row["cost"] for row in result.details["sites"]}
    assert costs["c"] > 10 * costs["a"]
    narrow = quantise(
        build(SIDES, {"wa": wa, "wb": wb}),
        data,
        scheme="int4",
        method="rtn",
        max_drift=LIMIT,
        max_wide=0,
    )
    assert {row["width"] for row in narrow.details["sites"]} == {"w4"}
    assert narrow.details["drift"] > LIMIT


def test_where_no_batch_runs_the_error_of_the_weights_says_what_hurts(rng):
    """A batch of one, fixed in the graph: sites cannot be measured side by side."""
    text = SIDES.replace("[b, s", "[1, s")
    wa, wb = random(rng, K, K) / 8, random(rng, K, K) / 8
    wb[::7] *= 30  # wide groups: their other entries are lost
    data = [{"x": random(rng, 1, 32, K)} for _ in range(6)]
    model = build(text, {"wa": wa, "wb": wb})
    result = quantise(model, data, scheme="int4", method="rtn", max_drift=0.05)
    costs = {row["site"]: row["cost"] for row in result.details["sites"]}
    errors = {row["site"]: row["weight_error"] for row in result.details["sites"]}
    assert costs["c"] > costs["a"]
    assert costs["c"] / costs["a"] == pytest.approx((errors["c"] / errors["a"]) ** 2)
    assert result.details["costs_measured"] is False
    assert "estimated from rounding errors, as the graph takes no batch" in result.notes[1]
    drawn = site_plot(result.details)
    assert drawn is not None
    assert "estimated from rounding errors" in drawn.title


HALF = f"""main (float16[b, s, {K}] x, float16[{K}] gain,
float16[{K}, {K}] wa, float16[{K}, {K}] wb) => (float16[b, s, {K}] y) {{
    even = Mul(x, gain)
    a = MatMul(even, wa)
    r = Relu(a)
    c = MatMul(r, wb)
    y = Add(c, even)
}}"""
GATED = HALF.replace("y = Add(c, even)", "y = Add(c, a)")


@pytest.mark.parametrize("text", [HALF, GATED], ids=["read twice", "divided"])
@pytest.mark.parametrize("method", ["awq", "gptq", "awq-gptq"])
def test_graphs_in_half_precision_are_solved_too(method, text, rng):
    gain = np.exp(random(rng, K)).astype(np.float16)
    halves = {name: (random(rng, K, K) / 8).astype(np.float16) for name in ("wa", "wb")}
    proto = ir.to_proto(build(text, {"gain": gain, **halves}))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    data = [{"x": feeds["x"].astype(np.float16)} for feeds in _mixed(rng)]
    (want,) = OrtEvaluator()(model.clone(), data[:1])
    assert quantise(model, data, scheme="int4", method=method).sites == ("a", "c")
    (got,) = OrtEvaluator()(model, data[:1])
    error = np.linalg.norm(np.float32(got["y"] - want["y"])) / np.linalg.norm(np.float32(want["y"]))
    assert error < 0.15
