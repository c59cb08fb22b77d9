"""Activations rounded to int8 token by token: which ops come out, and the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from stored_weights import Stored, build, exact, ops, relative, stored, with_tokens

from optc.core.context import Array
from optc.rewrite.quant_grid import Grid
from optc.targets.ort_quant import lower_quant

CHAIN = ["Abs", "ReduceMax", "Mul", "Max", "Shape", "Expand", "QuantizeLinear"]
PRODUCT = "float[b, s, 48] x) => (float[b, s, 24] y)"


def lowered(model: ir.Model, count: int) -> ir.Model:
    copy = model.clone()
    assert lower_quant(copy) == count
    assert lower_quant(copy) == 0  # what was lowered is left alone
    return copy


def kernels(model: ir.Model) -> list[str]:
    return [op for op in ops(model) if op != "Constant"]


def tokens(rng: np.random.Generator, *shape: int) -> Array:
    """Activations of tokens that differ in size by a factor of a thousand, and one of zeros."""
    x = rng.standard_normal(shape) * 10 ** rng.uniform(-1.5, 1.5, (*shape[:-1], 1))
    x[..., -1:, :] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("by_rows", [True, False], ids=["by rows", "by columns"])
@pytest.mark.parametrize("shape", [(2, 5, 48), (1, 1, 48), (3, 1, 48), (0, 4, 48)])
def test_each_token_keeps_a_scale_of_its_own_in_an_integer_product(shape, by_rows, rng, run):
    weight = stored(rng, (24, 48), Grid(), by_rows=by_rows)
    product = "t = Transpose<perm = [1, 0]>(w) y = MatMul(a, t)" if by_rows else "y = MatMul(a, w)"
    model = build(PRODUCT, with_tokens("x", "a") + product, weight)
    low = lowered(model, 1)
    assert kernels(low) == [*CHAIN, "MatMulIntegerToFloat"]
    x = {"x": tokens(rng, *shape)}
    want, got = exact(model, x)["y"], run(low, x)["y"]
    # sums of integers are exact; what differs is the order of two multiplications
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max(initial=0))


def test_what_is_rounded_is_unsigned_for_the_fast_kernel(rng):
    model = build(
        PRODUCT, with_tokens("x", "a") + "y = MatMul(a, w)", stored(rng, (24, 48), Grid())
    )
    low = lowered(model, 1)
    (spread,) = [node for node in low.graph if node.op_type == "Expand"]
    middle = spread.inputs[0].const_value
    assert (middle.dtype, int(middle.numpy())) == (ir.DataType.UINT8, 128)


def test_readers_of_one_activation_share_its_rounding(rng, run):
    first = stored(rng, (24, 48), Grid())
    second = Stored("v", rng.standard_normal((8, 48)).astype(np.float32), Grid())
    signature = "float[n, 48] x) => (float[n, 24] y, float[n, 8] z)"
    lines = with_tokens("x", "a") + "y = MatMul(a, w) z = MatMul(a, v)"
    model = build(signature, lines, first, second)
    low = lowered(model, 2)
    assert kernels(low) == [*CHAIN, "MatMulIntegerToFloat", "MatMulIntegerToFloat"]
    x = {"x": tokens(rng, 6, 48)}
    want, got = exact(model, x), run(low, x)
    for name in ("y", "z"):
        assert relative(got[name], want[name]) < 1e-6


@pytest.mark.parametrize("rows", [1, 6], ids=["one token", "several"])
def test_a_bias_is_added_after_the_scales_of_tokens(rows, rng, run):
    weight = stored(rng, (24, 48), Grid(), by_rows=True)
    lines = with_tokens("x", "a") + "y = Gemm<transB = 1>(a, w, c)"
    bias = rng.standard_normal(24).astype(np.float32)
    model = build("float[n, 48] x) => (float[n, 24] y)", lines, weight, c=bias)
    low = lowered(model, 1)
    assert kernels(low) == [*CHAIN, "MatMulIntegerToFloat", "Add"]
    x = {"x": tokens(rng, rows, 48)}
    np.testing.assert_allclose(run(low, x)["y"], exact(model, x)["y"], rtol=1e-5, atol=1e-4)


def test_the_two_factors_may_come_in_either_order(rng):
    lines = with_tokens("x", "a").replace("Mul(a_back, a_s)", "Mul(a_s, a_back)")
    model = build(PRODUCT, lines + "y = MatMul(a, w)", stored(rng, (24, 48), Grid()))
    assert kernels(lowered(model, 1)) == [*CHAIN, "MatMulIntegerToFloat"]


@pytest.mark.parametrize("grid", [Grid(4, 16), Grid(8, 16, symmetric=False)], ids=["4", "8"])
def test_a_weight_with_no_integer_kernel_takes_the_activation_as_it_was(grid, rng, run):
    weight = stored(rng, (24, 48), grid)
    model = build(PRODUCT, with_tokens("x", "a") + "y = MatMul(a, w)", weight)
    low = lowered(model, 1)
    assert kernels(low) == ["MatMulNBits"]
    assert low.graph[0].inputs[0] is low.graph.inputs[0]
    x = {"x": rng.standard_normal((2, 5, 48)).astype(np.float32)}
    # rounded by tokens here and by blocks there, each by less than 1 %
    assert relative(run(low, x)["y"], exact(model, x)["y"]) < 0.02


OTHERS = {
    "a scale per channel": ("a_axes = Constant<value_ints = [-1]>()", "value_ints = [0]"),
    "another scale on the way back": ("a = Mul(a_back, a_s)", "Mul(a_back, a_raw)"),
    "rounded down": ("a_near = Round(a_ratio)", "Floor(a_ratio)"),
    "to another type": ("a_q = Cast<to = 3>(a_near)", "Cast<to = 5>(a_near)"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_only_looks_like_it_keeps_its_rounding(case, rng, run):
    old, new = OTHERS[case]
    name = old.split(" =")[0]
    made = f"{name} = Constant<{new}>()" if new.startswith("value") else f"{name} = {new}"
    lines = with_tokens("x", "a")
    assert old in lines
    weight = stored(rng, (24, 48), Grid())
    model = build(
        "float[n, 48] x) => (float[n, 24] y)", lines.replace(old, made) + "y = MatMul(a, w)", weight
    )
    low = lowered(model, 1)
    assert ops(low)[-1] == "MatMulNBits"
    assert low.graph[-1].inputs[0].name == "a"
    x = {"x": rng.standard_normal((6, 48)).astype(np.float32)}
    assert relative(run(low, x)["y"], exact(model, x)["y"]) < 0.01
