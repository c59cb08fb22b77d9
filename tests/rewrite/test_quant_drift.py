"""What drift is measured at, and what it is where outputs are no plain numbers."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Context
from optc.core.errors import SampleError
from optc.rewrite.quant_drift import DriftMeter, distance, output_names
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_plan import Plan
from optc.targets.evaluate import OrtEvaluator

K, V = 32, 24
EIGHT = Plan({"w": Grid(8, 32)})


def _model(outputs, body, **weights):
    """Products [B,S,V] of `x` [B,S,K] with `w`, in `y`, and what `body` makes of them."""
    arrays = {"w": np.random.default_rng(0).normal(size=(K, V)).astype(np.float32), **weights}
    inputs = "".join(f", float[{','.join(map(str, a.shape))}] {n}" for n, a in arrays.items())
    model = ir.from_onnx_text(f"""<ir_version: 11, opset_import: ["": 24]>
    main (float[B, S, {K}] x{inputs}) => ({outputs}) {{
        y = MatMul(x, w)
        {body}
    }}""")
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(arrays[value.name], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def _meter(model):
    x = np.random.default_rng(1).normal(size=(1, 16, K)).astype(np.float32)
    ctx = Context(evaluate=OrtEvaluator())
    return DriftMeter(model, ctx, [{"x": x}], ctx.wants)


PLAIN = _model(f"float[B, S, {V}] y", "")


def test_choices_and_signs_are_no_measure_where_there_are_numbers_too():
    body = """zero = Constant<value_float = 0.0>()
        best = ArgMax<axis = -1>(y)
        positive = Greater(y, zero)"""
    both = _model(f"float[B, S, {V}] y, int64[B, S, 1] best, bool[B, S, {V}] positive", body)
    assert output_names(both) == ["y"]
    assert _meter(both).measure(EIGHT) == _meter(PLAIN).measure(EIGHT)
    only = _model("int64[B, S, 1] best", "best = ArgMax<axis = -1>(y)")
    assert output_names(only) == ["best"]


def test_a_score_named_logits_drifts_by_its_relative_error():
    """Of one column, every distribution is the same."""
    h = np.random.default_rng(2).normal(size=(V, 1)).astype(np.float32)
    drifts = []
    for name in ("logits", "score"):
        meter = _meter(_model(f"float[B, S, 1] {name}", f"{name} = MatMul(y, h)", h=h))
        assert meter.metric == "relative L2 error"
        drifts.append(meter.measure(EIGHT))
    assert drifts[0] == drifts[1] > 1e-3


def _suppressing(which):
    mask = np.where(which, -np.inf, 0).astype(np.float32)
    return _model(f"float[B, S, {V}] logits", "logits = Add(y, mask)", mask=mask)


def test_suppressed_tokens_have_no_part_in_the_divergence():
    drift = _meter(_suppressing(np.arange(V) > 20)).measure(EIGHT)
    rest = _model(
        "float[B, S, 21] logits",
        """first = Constant<value_ints = [0]>()
        end = Constant<value_ints = [21]>()
        last = Constant<value_ints = [-1]>()
        logits = Slice(y, first, end, last)""",
    )
    assert drift == pytest.approx(_meter(rest).measure(EIGHT), rel=1e-3)
    assert drift > 0


def test_where_every_token_is_suppressed_there_is_nothing_to_measure():
    with pytest.raises(SampleError, match="the float graph gives NaN or infinity"):
        _meter(_suppressing(np.ones(V, bool)))


INF = math.inf


@pytest.mark.parametrize("name", ["logits", "y"])
@pytest.mark.parametrize(
    ("got", "expected"),
    [([1, math.nan], [1, 2]), ([1, INF], [1, 2]), ([1, -INF], [1, 2]), ([1, INF], [1, -INF])],
    ids=str,
)
def test_what_is_infinite_without_being_so_before_is_infinitely_far(name, got, expected):
    rows = [np.array([row], np.float32) for row in (got, expected)]
    assert distance(name, *rows)[0] == INF


def test_minus_infinity_on_both_sides_is_no_distance():
    rows = [np.array([row], np.float32) for row in ([1, -INF, 3], [1, -INF, 4])]
    assert distance("y", *rows) == (1.0, 17.0)
    assert distance("y", rows[0][:, [0, 2, 2]], rows[0])[0] == INF


def test_numbers_without_a_square_in_float32_have_a_distance():
    rows = [np.array([row], np.float32) for row in ([1e37, 2e37], [1e37, 1e37])]
    moved, size = distance("y", *rows)
    assert moved / size == pytest.approx(0.5, rel=1e-5)


def test_an_output_without_elements_does_not_drift():
    body = """zero = Constant<value_ints = [0]>()
        last = Constant<value_ints = [2]>()
        nothing = Slice(y, zero, zero, last)"""
    meter = _meter(_model(f"float[B, S, {V}] y, float[B, S, 0] nothing", body))
    assert meter.measure(EIGHT) == _meter(PLAIN).measure(EIGHT)


FACTORS = np.exp2(np.arange(K) % 7).astype(np.float32)


@pytest.mark.parametrize(
    ("plain", "divided"),
    [
        (Plan(EIGHT.weights), Plan(EIGHT.weights, factors={"x": FACTORS})),
        (
            Plan(EIGHT.weights, {"x": Fit(4.0)}),
            Plan(EIGHT.weights, {"x": Fit(4.0, FACTORS)}),
        ),
    ],
    ids=["weights", "activations"],
)
def test_plans_that_differ_in_factors_alone_are_measured_each(plain, divided):
    meter = _meter(PLAIN)
    first, second = meter.measure(plain), meter.measure(divided)
    assert second == _meter(PLAIN).measure(divided)
    assert first != second
