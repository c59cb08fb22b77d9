"""Quantised graphs that ONNX Runtime's optimiser breaks are run without what breaks them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from stored_weights import build, exact, ops, relative

from optc.targets.evaluate import OrtEvaluator
from optc.targets.ort_faults import EVERYTHING, optimised
from optc.targets.ort_float8 import keep_bounds
from optc.targets.ort_lower import lowered
from optc.targets.ort_session import OrtSession

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


PRODUCT = "a = MatMul(x, d)"
ROUNDED = """e = QuantizeLinear(x, t, z)
                f = DequantizeLinear(e, t, z)
                a = MatMul(f, d)"""


def in_branch(
    rng: np.random.Generator, attributes: str, scales: tuple[int, ...], product: str
) -> ir.Model:
    """A product in a branch, whose weight is dequantised there from constants outside."""
    return build(
        "float[n, 64] x, bool way) => (float[n, 16] y)",
        f"""y = If(way) <
            then_branch = yes () => (float[n, 16] a) {{
                d = DequantizeLinear<{attributes}>(w, s)
                {product} }},
            else_branch = no () => (float[n, 16] b) {{
                none = Constant<value_ints = [0]>()
                most = Constant<value_ints = [16]>()
                last = Constant<value_ints = [1]>()
                b = Slice(x, none, most, last) }}>""",
        w=rng.integers(-127, 127, (64, 16)).astype(np.int8),
        s=(rng.random(scales) + 0.5).astype(np.float32),
        t=np.array(4 / 127, np.float32),
        z=np.array(0, np.int8),
    )


def rounded(bounds: str) -> ir.Model:
    """What `bounds` makes of x, in float8 and back."""
    return build(
        "float[n] x) => (float[n] y)",
        f"""r = {bounds}
        q = QuantizeLinear<output_dtype = 17>(r, s)
        y = DequantizeLinear(q, s)""",
        s=np.array(0.25, np.float32),
        zero=np.array(0, np.float32),
        six=np.array(6, np.float32),
    )


X = np.linspace(-8, 8, 65, dtype=np.float32)
BOUNDS = {
    "Relu(x)": (0, np.inf),
    "Clip(x, zero, six)": (0, 6),
    "Clip(x, zero)": (0, np.inf),
    "Clip(x, , six)": (-np.inf, 6),
}


@pytest.mark.parametrize(
    ("attributes", "scales"),
    [("axis = 0, block_size = 32", (2, 16)), ("axis = 1", (16,))],
    ids=["groups", "channels"],
)
def test_a_weight_that_a_branch_takes_from_outside(rng, attributes, scales):
    model = in_branch(rng, attributes, scales, PRODUCT)
    feeds = {"x": rng.standard_normal((3, 64)).astype(np.float32), "way": np.array(True)}
    (found,) = OrtEvaluator()(model, [feeds])
    np.testing.assert_allclose(found["y"], exact(model, feeds)["y"], rtol=1e-4, atol=1e-3)


def test_a_product_of_two_rounded_operands_in_a_branch_is_still_optimised(rng):
    model = in_branch(rng, "axis = 1", (16,), ROUNDED)
    assert optimised(model) == EVERYTHING
    feeds = {"x": rng.standard_normal((3, 64)).astype(np.float32), "way": np.array(True)}
    (found,) = OrtEvaluator()(model, [feeds])
    assert relative(found["y"], exact(model, feeds)["y"]) < 1e-5


@pytest.mark.parametrize("bounds", BOUNDS)
def test_float8_behind_bounds_as_a_canonical_graph(bounds):
    (found,) = OrtEvaluator()(rounded(bounds), [{"x": X}])
    want = (np.clip(X, *BOUNDS[bounds]) * 4).astype(FLOAT8).astype(np.float32) / 4
    np.testing.assert_array_equal(found["y"], want)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_float8_behind_bounds_as_an_engine_that_any_session_opens(bounds, tmp_path):
    model = lowered(rounded(bounds))
    assert not {"Relu", "Clip"} & set(ops(model))
    ir.save(model, tmp_path / "engine.onnx")
    with OrtSession(tmp_path / "engine.onnx") as session:
        found = session.run({"x": X})
    want = (np.clip(X, *BOUNDS[bounds]) * 4).astype(FLOAT8).astype(np.float32) / 4
    np.testing.assert_array_equal(found["y"], want)


def test_bounds_that_others_read_too_keep_their_name_and_their_value():
    model = rounded("Relu(x)")
    bound = model.graph.node(0).outputs[0]
    bound.dtype, bound.shape = ir.DataType.FLOAT, ir.Shape(["n"])
    model.graph.outputs.append(bound)
    assert keep_bounds(model) == 1
    (found,) = OrtEvaluator()(model, [{"x": X}])
    np.testing.assert_array_equal(found["r"], np.maximum(X, 0))


def test_bounds_in_front_of_integers_are_left_alone():
    model = rounded("Relu(x)")
    quantise = model.graph.node(1)
    quantise.attributes["output_dtype"] = ir.AttrInt64("output_dtype", ir.DataType.INT8.value)
    assert keep_bounds(model) == 0
    assert optimised(model) == EVERYTHING
