"""Weights of 4 and 8 bits, by channel and by group, in the runtime's block kernels.

The kernel of products rounds blocks of the activation to 127 steps each way. Of independent normal
numbers that is less than 1 % of the norm: a step is max / 127, the error step / sqrt(12), and the
largest of 512 normal numbers is about 3.1 of their deviations, so 3.1 / 127 / sqrt(12) = 0.7 %.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from stored_weights import Stored, build, exact, ops, relative, stored

from optc.ir.streamed import EVERY, StreamedTensor
from optc.rewrite.quant_grid import Grid
from optc.targets.ort_quant import lower_quant

ROUNDING = 0.01
GRIDS = [
    Grid(bits, group, symmetric)
    for bits in (4, 8)
    for group in (0, 16, 32, 128, 48)
    for symmetric in (True, False)
]
PRODUCT = "float[n, {k}] x) => (float[n, {c}] y)"


def named(grid: Grid) -> str:
    return f"{grid.dtype.name}, {grid.group or 'channel'}"


def lowered(model: ir.Model, count: int) -> ir.Model:
    copy = model.clone()
    assert lower_quant(copy) == count
    assert lower_quant(copy) == 0  # what was lowered is left alone
    return copy


def attributes(node: ir.Node) -> dict[str, Any]:
    return {name: value.value for name, value in node.attributes.items()}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("inner", [256, 200], ids=["even", "uneven"])
@pytest.mark.parametrize("grid", GRIDS, ids=named)
def test_a_product_takes_a_weight_of_any_grid(grid, inner, rng, run):
    weight = stored(rng, (24, inner), grid)
    model = build(PRODUCT.format(k=inner, c=24), "y = MatMul(x, w)", weight)
    low = lowered(model, 1)
    assert ops(low) == ["MatMulNBits"]
    length = {0: 64 if inner == 256 else 16, 48: 16}.get(grid.group, grid.group)
    about = {"K": inner, "N": 24, "bits": grid.bits, "block_size": length, "accuracy_level": 4}
    assert attributes(low.graph[0]) == about
    x = {"x": normal(rng, 7, inner)}
    assert relative(run(low, x)["y"], exact(model, x)["y"]) < ROUNDING


@pytest.mark.parametrize("group", [0, 32], ids=["channel", "group"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("by_rows", "lines"),
    [
        (True, "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)"),
        (True, "y = Gemm<transB = 1>(x, w, c)"),
        (False, "y = Gemm(x, w, c)"),
    ],
    ids=["transposed", "Gemm by rows", "Gemm by columns"],
)
def test_weights_are_read_in_either_layout_and_biases_kept(lines, by_rows, bits, group, rng, run):
    weight = stored(rng, (24, 96), Grid(bits, group, symmetric=False), by_rows=by_rows)
    bias = {"c": normal(rng, 24)} if "Gemm" in lines else {}
    model = build(PRODUCT.format(k=96, c=24), lines, weight, **bias)
    low = lowered(model, 1)
    assert ops(low) == ["MatMulNBits"]
    x = {"x": normal(rng, 7, 96)}
    assert relative(run(low, x)["y"], exact(model, x)["y"]) < ROUNDING


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_that_say_nothing_new_are_right(bits, rng, run):
    weight = stored(rng, (24, 64), Grid(bits, 32), with_zeros=True)
    model = build(PRODUCT.format(k=64, c=24), "y = MatMul(x, w)", weight)
    low = lowered(model, 1)
    x = {"x": normal(rng, 7, 64)}
    assert relative(run(low, x)["y"], exact(model, x)["y"]) < ROUNDING


@pytest.mark.parametrize("bits", [4, 8])
def test_unsigned_steps_without_zero_points_count_from_zero(bits, rng, run):
    weight = stored(rng, (24, 64), Grid(bits, 32, symmetric=False))
    del weight.arrays["w_zero"]
    weight.line = weight.line.replace(", w_zero", "")
    model = build(PRODUCT.format(k=64, c=24), "y = MatMul(x, w)", weight)
    x = {"x": normal(rng, 7, 64)}
    assert relative(run(lowered(model, 1), x)["y"], exact(model, x)["y"]) < ROUNDING


TIED = "int64[b, s] ids) => (float[b, s, {k}] found, float[b, s, 40] y)"
TIED_LINES = """
found = Gather(w, ids)
flipped = Transpose<perm = [1, 0]>(w)
y = MatMul(found, flipped)"""


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("group", [16, 32, 128, 0])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_table_stays_one_tensor(bits, group, symmetric, rng, run):
    weight = stored(rng, (40, 128), Grid(bits, group, symmetric), by_rows=True)
    model = build(TIED.format(k=128), TIED_LINES, weight)
    low = lowered(model, 2)
    assert sorted(ops(low)) == ["GatherBlockQuantized", "MatMulNBits", "Reshape", "Unsqueeze"]
    (lookup,) = [node for node in low.graph if node.op_type == "GatherBlockQuantized"]
    (product,) = [node for node in low.graph if node.op_type == "MatMulNBits"]
    assert lookup.inputs[0] is product.inputs[1]
    constants = low.graph.initializers.values()
    assert sum(v.const_value.nbytes >= 40 * 128 * bits // 8 for v in constants) == 1
    ids = {"ids": rng.integers(0, 40, (2, 3))}
    want, got = exact(model, ids), run(low, ids)
    np.testing.assert_allclose(got["found"], weight.values[ids["ids"]], rtol=1e-6, atol=1e-6)
    assert relative(got["y"], want["y"]) < ROUNDING


@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_by_groups_that_is_not_tied_is_looked_up_in_its_blocks(bits, rng, run):
    weight = stored(rng, (40, 64), Grid(bits, 32, symmetric=False), by_rows=True)
    model = build("int64[n] ids) => (float[n, 64] y)", "y = Gather(w, ids)", weight)
    low = lowered(model, 1)
    assert sorted(ops(low)) == ["GatherBlockQuantized", "Reshape", "Unsqueeze"]
    ids = {"ids": rng.integers(0, 40, 6)}
    np.testing.assert_allclose(run(low, ids)["y"], exact(model, ids)["y"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("group", [0, 32, 128], ids=["channel", "32", "128"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_table_that_blocks_do_not_divide_is_one_tensor_too(bits, group, symmetric, rng, run):
    weight = stored(rng, (40, 150), Grid(bits, group, symmetric), by_rows=True)
    model = build(TIED.format(k=150), TIED_LINES, weight)
    low = lowered(model, 2)
    kernels = ["GatherBlockQuantized", "MatMulNBits", "Reshape", "Slice", "Unsqueeze"]
    assert sorted(ops(low)) == kernels
    ids = {"ids": rng.integers(0, 40, (2, 3))}
    want, got = exact(model, ids), run(low, ids)
    np.testing.assert_allclose(got["found"], want["found"], rtol=1e-6, atol=1e-6)
    assert relative(got["y"], want["y"]) < ROUNDING


@pytest.mark.parametrize("bits", [4, 8])
def test_shorter_blocks_that_divide_the_inputs_are_rather_taken_than_filled_up(bits, rng, run):
    weight = stored(rng, (24, 192), Grid(bits, 128, symmetric=False))
    model = build(PRODUCT.format(k=192, c=24), "y = MatMul(x, w)", weight)
    low = lowered(model, 1)
    assert list(low.graph[0].inputs[1].shape) == [24, 3, 64 * bits // 8]
    x = {"x": normal(rng, 7, 192)}
    assert relative(run(low, x)["y"], exact(model, x)["y"]) < ROUNDING


@pytest.mark.parametrize("bits", [4, 8])
def test_float16_activations_and_scales_are_taken_as_they_are(bits, rng, run):
    weight = stored(rng, (40, 128), Grid(bits, 32, symmetric=False), by_rows=True, kind=np.float16)
    model = build(TIED.format(k=128).replace("float[", "float16["), TIED_LINES, weight)
    low = lowered(model, 2)
    assert "Cast" not in ops(low)
    assert "DequantizeLinear" not in ops(low)
    ids = {"ids": rng.integers(0, 40, (2, 3))}
    want, got = exact(model, ids), run(low, ids)
    assert got["y"].dtype == np.float16
    assert relative(got["found"], want["found"]) < 2**-10
    assert relative(got["y"], want["y"]) < ROUNDING


STAYS = {
    "groups of 8": (Grid(4, 8), "y = MatMul(x, w)"),
    "groups of 24": (Grid(8, 24), "y = MatMul(x, w)"),
    "added": (Grid(4, 32), "y = Add(x, w)"),
    "multiplied from the left": (Grid(4, 32), "y = MatMul(w, x)"),
    "groups along the outputs": (Grid(4, 32), "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)"),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_the_kernels_cannot_do_stays_and_runs(case, rng, run):
    grid, lines = STAYS[case]
    weight = stored(rng, (96, 96), grid)
    model = build("float[96, 96] x) => (float[96, 96] y)", lines, weight)
    low = lowered(model, 0)
    assert ops(low) == ops(model)
    x = {"x": normal(rng, 96, 96)}
    assert relative(run(low, x)["y"], exact(model, x)["y"]) < ROUNDING


def test_a_float16_table_of_int8_is_looked_up_by_rows(rng, run):
    weight = stored(rng, (40, 24), Grid(8), by_rows=True, kind=np.float16)
    model = build("int64[n] ids) => (float16[n, 24] y)", "y = Gather(w, ids)", weight)
    low = lowered(model, 1)
    assert sorted(ops(low)) == ["Cast", "Gather", "Gather", "Mul"]
    ids = {"ids": rng.integers(0, 40, 6)}
    np.testing.assert_array_equal(run(low, ids)["y"], exact(model, ids)["y"])


def test_bfloat16_scales_are_left_to_others(rng):
    weight = stored(rng, (24, 64), Grid(8, 32))
    weight.arrays["w_scale"] = weight.arrays["w_scale"].astype(ml_dtypes.bfloat16)
    model = build("bfloat16[n, 64] x) => (bfloat16[n, 24] y)", "y = MatMul(x, w)", weight)
    assert ops(lowered(model, 0)) == ops(model)


@pytest.mark.parametrize("by_rows", [True, False], ids=["by rows", "by columns"])
@pytest.mark.parametrize("group", [0, 32], ids=["channel", "group"])
def test_a_part_of_a_weight_reads_that_part_of_its_source(group, by_rows, rng):
    weight = stored(rng, (64, 96), Grid(4, group, symmetric=False), by_rows=by_rows)
    lines = "y = Gemm<transB = 1>(x, w)" if by_rows else "y = Gemm(x, w)"
    model = build(PRODUCT.format(k=96, c=64), lines, weight)
    read: list[tuple[slice, slice]] = []
    steps = model.graph.initializers["w_steps"]
    array = steps.const_value.numpy()

    def part(rows: slice, columns: slice) -> np.ndarray:
        read.append((rows, columns))
        return array[rows, columns]

    steps.const_value = StreamedTensor(part, ir.DataType.UINT4, array.shape)
    lower_quant(model)
    assert read == []
    found = [value.const_value for value in model.graph[0].inputs[1:4]]
    wholes = [tensor.numpy() for tensor in found]
    read.clear()
    for tensor, whole in zip(found, wholes, strict=True):
        assert isinstance(tensor, StreamedTensor)
        np.testing.assert_array_equal(tensor.part(slice(8, 12), EVERY), whole[8:12])
        np.testing.assert_array_equal(tensor.part(slice(8, 12), slice(0, 1)), whole[8:12, :1])
    length = 32
    wanted = [(slice(8, 12), slice(0, 96)), (slice(8, 12), slice(0, length))]
    assert read == (wanted if by_rows else [(inputs, rows) for rows, inputs in wanted])


def test_two_weights_over_the_same_names_do_not_clash(rng, run):
    first = Stored("w", normal(rng, 24, 64), Grid(4, 32))
    second = Stored("w_blocks", normal(rng, 24, 64), Grid(4, 32))
    lines = "a = MatMul(x, w) b = MatMul(x, w_blocks) y = Add(a, b)"
    model = build(PRODUCT.format(k=64, c=24), lines, first, second)
    x = {"x": normal(rng, 3, 64)}
    assert relative(run(lowered(model, 2), x)["y"], exact(model, x)["y"]) < ROUNDING
