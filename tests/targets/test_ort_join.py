"""Products of one activation become one product, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from stored_weights import Stored, build, ops

from optc.core.context import Array
from optc.ir.streamed import EVERY, StreamedTensor
from optc.rewrite.quant_grid import Grid
from optc.targets.ort_join import join_products
from optc.targets.ort_lower import lowered
from optc.targets.ort_quant import lower_quant

SIGNATURE = "float[b, s, 64] x) => (float[b, s, 24] q, float[b, s, 8] k, float[b, s, 40] v)"
LINES = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
WIDTHS = {"wq": 24, "wk": 8, "wv": 40}


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def three(rng: np.random.Generator, *grids: Grid) -> ir.Model:
    """Three products of one activation, lowered and not joined."""
    pairs = zip(WIDTHS.items(), grids, strict=True)
    weights = [Stored(name, normal(rng, size, 64), grid) for (name, size), grid in pairs]
    model = build(SIGNATURE, LINES, *weights)
    assert lower_quant(model) == 3
    return model


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, symmetric=False), Grid()])
def test_products_on_the_same_terms_become_one_with_the_same_numbers(grid, rng, run):
    model = three(rng, grid, grid, grid)
    x = {"x": normal(rng, 2, 5, 64)}
    want = run(model, x)
    assert join_products(model) == 2
    assert ops(model) == ["MatMulNBits", "Split"]
    assert model.graph[0].attributes["N"].as_int() == 72
    got = run(model, x)
    for name in "qkv":
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-5)
    assert join_products(model) == 0


def test_products_on_other_terms_stay_apart(rng, run):
    model = three(rng, Grid(4, 32), Grid(4, 16), Grid(4, 32, symmetric=False))
    assert join_products(model) == 0
    assert ops(model) == ["MatMulNBits"] * 3


def test_those_that_agree_are_joined_past_one_that_does_not(rng, run):
    model = three(rng, Grid(4, 32), Grid(8, 32), Grid(4, 32))
    x = {"x": normal(rng, 1, 3, 64)}
    want = run(model, x)
    assert join_products(model) == 1
    got = run(model, x)
    for name in "qkv":
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-5)


def test_products_of_two_activations_stay_apart(rng):
    weights = [Stored(name, normal(rng, 64, 64), Grid(4, 32)) for name in ("w", "v")]
    lines = "y = MatMul(x, w) z = MatMul(y, v)"
    model = build("float[n, 64] x) => (float[n, 64] z)", lines, *weights)
    lower_quant(model)
    assert join_products(model) == 0


@pytest.mark.parametrize(("second", "joined"), [("y = Gemm(x, v, d)", 1), ("y = Gemm(x, v)", 0)])
def test_biases_are_joined_where_all_have_one(second, joined, rng, run):
    first, other = (Stored(name, normal(rng, 16, 64), Grid(4, 32)) for name in ("w", "v"))
    bias = {name: normal(rng, 16) for name in ("c", "d") if name in ("c", second[-2])}
    lines = f"z = Gemm(x, w, c) {second}"
    model = build(
        "float[n, 64] x) => (float[n, 16] z, float[n, 16] y)", lines, first, other, **bias
    )
    lower_quant(model)
    x = {"x": normal(rng, 5, 64)}
    want = run(model, x)
    assert join_products(model) == joined
    got = run(model, x)
    for name in "zy":
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-5)


def test_a_tied_table_is_not_stored_twice(rng):
    table = Stored("w", normal(rng, 40, 64), Grid(4, 32), by_rows=True)
    other = Stored("v", normal(rng, 8, 64), Grid(4, 32))
    lines = """
    found = Gather(w, ids)
    flipped = Transpose<perm = [1, 0]>(w)
    y = MatMul(found, flipped)
    z = MatMul(found, v)"""
    model = build("int64[n] ids) => (float[n, 40] y, float[n, 8] z)", lines, table, other)
    lower_quant(model)
    assert join_products(model) == 0


def test_joined_weights_are_read_a_part_at_a_time(rng):
    model = three(rng, Grid(4, 32), Grid(4, 32), Grid(4, 32))
    parts = [node.inputs[1].const_value.numpy() for node in model.graph]
    join_products(model)
    steps = model.graph[0].inputs[1].const_value
    assert isinstance(steps, StreamedTensor)
    whole = np.concatenate(parts)
    np.testing.assert_array_equal(steps.numpy(), whole)
    np.testing.assert_array_equal(steps.part(slice(20, 50), EVERY), whole[20:50])
    np.testing.assert_array_equal(steps.part(slice(0, 10), slice(1, 2)), whole[:10, 1:2])


def test_the_target_joins_what_it_lowers(rng, run):
    weights = [Stored(name, normal(rng, size, 64), Grid(4, 32)) for name, size in WIDTHS.items()]
    low = lowered(build(SIGNATURE, LINES, *weights))
    assert ops(low) == ["MatMulNBits", "Split"]
    assert [output.name for output in low.graph.outputs] == ["q", "k", "v"]
