"""Lowering of standard Q/DQ to ONNX Runtime's integer kernels: which ops, and the same numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from optc.core.context import Array, Feeds
from optc.ir.streamed import StreamedTensor
from optc.rewrite.quant_apply import apply_plan
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites
from optc.targets.ort_quant import lower_quant

RANGE = 4.0  # what the grids of activations reach; feeds are clipped to it


def build(text: str, **weights: Array) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": 24]> {text}')
    for value in [v for v in model.graph.inputs if v.name in weights]:
        value.const_value = ir.tensor(weights[str(value.name)], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def quantised(model: ir.Model, *activations: str) -> ir.Model:
    """`model` with every weight in int8, and the named activations too."""
    sites = find_sites(model).sites
    weights = {str(site.weight.name): Grid() for site in sites}
    apply_plan(model, sites, Plan(weights, {name: Fit(RANGE) for name in activations}))
    return model


def exact(model: ir.Model, feeds: Feeds) -> dict[str, Array]:
    """What the graph means, by the operators' definitions."""
    names = [str(output.name) for output in model.graph.outputs]
    results = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))
    return dict(zip(names, results, strict=True))


def lowered(model: ir.Model, count: int) -> ir.Model:
    copy = model.clone()
    assert lower_quant(copy) == count
    return copy


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def random(rng: np.random.Generator, *shape: int) -> Array:
    return np.clip(rng.standard_normal(shape), -RANGE, RANGE).astype(np.float32)


def constants(model: ir.Model) -> Mapping[str, ir.Value]:
    return model.graph.initializers


def dequantised(model: ir.Model, name: str) -> Array:
    """The weight `name` as it is after rounding."""
    integers, scale = (constants(model)[f"{name}_{part}"].const_value for part in ("int8", "scale"))
    axis = next(n for n in model.graph if n.inputs[0].name == f"{name}_int8").attributes["axis"]
    return integers.numpy() * np.expand_dims(scale.numpy(), 1 - axis.as_int())


def block_bound(x: Array, matrix: Array, length: int) -> Array:
    """The most that rounding blocks of x to 127 steps each way moves x @ matrix."""
    padded = np.pad(np.abs(x), [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % length)])
    largest = padded.reshape(*x.shape[:-1], -1, length).max(axis=-1)
    return np.repeat(largest, length, axis=-1)[..., : x.shape[-1]] @ np.abs(matrix) / 254


SHARED = """main (float[b, s, 48] x, float[48, 24] wq, float[48, 8] wk) => (
    float[b, s, 24] q, float[b, s, 8] k) {
    a = Tanh(x)
    q = MatMul(a, wq)
    k = MatMul(a, wk)
}"""


def test_int8_weight_and_activation_become_an_integer_product_with_the_same_value(rng, run):
    model = quantised(build(SHARED, wq=random(rng, 48, 24), wk=random(rng, 48, 8)), "a")
    low = lowered(model, 2)
    assert ops(low) == ["Tanh", "QuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat"]
    x = {"x": random(rng, 2, 5, 48)}
    want, got = exact(model, x), run(low, x)
    for name in ("q", "k"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_the_grid_of_an_activation_is_moved_to_unsigned_for_the_fast_kernel(rng):
    low = lowered(quantised(build(SHARED, wq=random(rng, 48, 24), wk=random(rng, 48, 8)), "a"), 2)
    (quantise,) = [node for node in low.graph if node.op_type == "QuantizeLinear"]
    zero = quantise.inputs[2].const_value
    assert (zero.dtype, int(zero.numpy())) == (ir.DataType.UINT8, 128)


def test_an_int8_weight_alone_becomes_a_block_product(rng, run):
    model = quantised(build(SHARED, wq=random(rng, 48, 24), wk=random(rng, 48, 8)))
    low = lowered(model, 2)
    assert ops(low) == ["Tanh", "MatMulNBits", "MatMulNBits"]
    attributes = {k: v.value for k, v in low.graph[1].attributes.items()}
    assert attributes == {"K": 48, "N": 24, "bits": 8, "block_size": 16, "accuracy_level": 4}
    x = {"x": random(rng, 2, 5, 48)}
    want, got = exact(model, x), run(low, x)
    for name, weight in (("q", "wq"), ("k", "wk")):
        bound = block_bound(np.tanh(x["x"]), dequantised(model, weight), 16)
        assert (np.abs(got[name] - want[name]) <= bound + 1e-5).all()


def test_a_length_that_no_block_divides_is_filled_up(rng, run):
    text = "main (float[n, 20] x, float[20, 12] w) => (float[n, 12] y) { y = MatMul(x, w) }"
    model = quantised(build(text, w=random(rng, 20, 12)))
    low = lowered(model, 1)
    assert list(low.graph[0].inputs[1].shape) == [12, 2, 16]
    x = {"x": random(rng, 7, 20)}
    bound = block_bound(x["x"], dequantised(model, "w"), 16)
    assert (np.abs(run(low, x)["y"] - exact(model, x)["y"]) <= bound + 1e-5).all()


TIED = """main (int64[b, s] ids, float[40, {k}] table)
=> (float[b, s, {k}] found, float[b, s, 40] y) {{
    found = Gather(table, ids)
    flipped = Transpose<perm = [1, 0]>(table)
    y = MatMul(found, flipped)
}}"""


@pytest.mark.parametrize("activations", [(), ("found",)], ids=["w8", "w8a8"])
def test_a_tied_table_is_read_from_one_place_by_lookup_and_product(activations, rng, run):
    model = quantised(build(TIED.format(k=64), table=random(rng, 40, 64)), *activations)
    low = lowered(model, 2)
    assert ops(low) == ["Unsqueeze", "GatherBlockQuantized", "Reshape", "MatMulNBits"]
    assert low.graph[1].inputs[0] is low.graph[3].inputs[1]
    assert low.graph[0].inputs[0] is low.graph[3].inputs[2]
    big = [v for v in constants(low).values() if v.const_value.nbytes >= 40 * 64]
    assert [(v.dtype, list(v.shape)) for v in big] == [(ir.DataType.UINT8, [40, 1, 64])]
    ids = {"ids": rng.integers(0, 40, (2, 3))}
    want, got = exact(model, ids), run(low, ids)
    np.testing.assert_array_equal(got["found"], dequantised(model, "table")[ids["ids"]])
    bound = block_bound(want["found"], dequantised(model, "table").T, 64)
    step = RANGE / 127 if activations else 0.0  # the grid in the graph, not used in the product
    bound = bound + step / 2 * np.abs(dequantised(model, "table").T).sum(axis=0)
    assert (np.abs(got["y"] - want["y"]) <= bound + 1e-5).all()


def test_a_tied_table_that_no_block_divides_is_still_one_tensor(rng, run):
    model = quantised(build(TIED.format(k=20), table=random(rng, 40, 20)))
    low = lowered(model, 2)
    kernels = ["GatherBlockQuantized", "MatMulNBits", "Reshape", "Slice", "Unsqueeze"]
    assert sorted(ops(low)) == kernels
    ids = {"ids": rng.integers(0, 40, (2, 3))}
    np.testing.assert_array_equal(run(low, ids)["found"], exact(model, ids)["found"])


@pytest.mark.parametrize("lookup", ["Gather", "Gather<axis = -2>"])
def test_a_table_alone_is_looked_up_by_rows_of_integers(lookup, rng, run):
    body = f"{{ y = {lookup}(table, ids) }}"
    text = f"main (int64[n] ids, float[50, 8] table) => (float[n, 8] y) {body}"
    model = quantised(build(text, table=random(rng, 50, 8)))
    low = lowered(model, 1)
    assert sorted(ops(low)) == ["Cast", "Gather", "Gather", "Mul"]
    assert all(
        v.dtype != ir.DataType.FLOAT or v.const_value.size <= 50 for v in constants(low).values()
    )
    ids = {"ids": rng.integers(0, 50, 6)}
    np.testing.assert_array_equal(run(low, ids)["y"], exact(model, ids)["y"])


GEMM = """main (float[n, 32] x, float[{shape}] w, float[16] c) => (float[n, 16] y) {{
    y = Gemm<transB = {flip}>(x, w, c)
}}"""


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("activations", [(), ("x",)], ids=["w8", "w8a8"])
def test_a_gemm_keeps_its_bias_in_either_layout(activations, flip, rng, run):
    shape = (16, 32) if flip else (32, 16)
    text = GEMM.format(shape=f"{shape[0]}, {shape[1]}", flip=flip)
    model = quantised(build(text, w=random(rng, *shape), c=random(rng, 16)), *activations)
    low = lowered(model, 1)
    assert ops(low)[-1] == ("MatMulIntegerToFloat" if activations else "MatMulNBits")
    x = {"x": random(rng, 5, 32)}
    matrix = dequantised(model, "w").T if flip else dequantised(model, "w")
    bound = 0.0 if activations else block_bound(x["x"], matrix, 32)
    assert (np.abs(run(low, x)["y"] - exact(model, x)["y"]) <= bound + 1e-4).all()


@pytest.mark.parametrize("activations", [(), ("x",)], ids=["w8", "w8a8"])
@pytest.mark.parametrize("shape", [(1,), (1, 16), (5, 1), (5, 16)])
def test_a_bias_that_is_no_row_is_added_after_the_product(shape, activations, rng, run):
    axes = ", ".join(map(str, shape))
    text = GEMM.format(shape="32, 16", flip=0).replace("float[16] c", f"float[{axes}] c")
    model = quantised(build(text, w=random(rng, 32, 16)), *activations)
    low = lowered(model, 1)
    assert ops(low)[-2:] == ["MatMulIntegerToFloat" if activations else "MatMulNBits", "Add"]
    x = {"x": random(rng, 5, 32), "c": random(rng, *shape)}
    bound = 0.0 if activations else block_bound(x["x"], dequantised(model, "w"), 32)
    assert (np.abs(run(low, x)["y"] - exact(model, x)["y"]) <= bound + 1e-4).all()


def test_a_weight_stored_by_rows_is_turned_for_the_integer_product(rng, run):
    text = """main (float[n, 32] x, float[16, 32] w) => (float[n, 16] y) {
        t = Transpose<perm = [1, 0]>(w)
        y = MatMul(x, t)
    }"""
    model = quantised(build(text, w=random(rng, 16, 32)), "x")
    low = lowered(model, 1)
    assert ops(low) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert [list(v.shape) for v in constants(low).values() if v.dtype == ir.DataType.INT8] == [
        [32, 16]
    ]
    x = {"x": random(rng, 5, 32)}
    np.testing.assert_allclose(run(low, x)["y"], exact(model, x)["y"], rtol=1e-5, atol=1e-5)


def test_a_weight_that_meets_both_kinds_of_activation_is_stored_once(rng):
    text = """main (float[n, 32] x, float[32, 32] w) => (float[n, 32] y) {
        h = MatMul(x, w)
        a = Relu(h)
        y = MatMul(a, w)
    }"""
    low = lowered(quantised(build(text, w=random(rng, 32, 32)), "x"), 2)
    assert ops(low) == ["MatMulNBits", "Relu", "MatMulNBits"]
    assert low.graph[0].inputs[1] is low.graph[2].inputs[1]


def test_weights_are_not_computed_before_they_are_saved(rng):
    low = lowered(quantised(build(SHARED, wq=random(rng, 48, 24), wk=random(rng, 48, 8))), 2)
    kinds = [
        type(node.inputs[1].const_value) for node in low.graph if node.op_type == "MatMulNBits"
    ]
    assert kinds == [StreamedTensor, StreamedTensor]


def test_a_graph_without_q_dq_stays_as_it_is(rng):
    model = build(SHARED, wq=random(rng, 48, 24), wk=random(rng, 48, 8))
    before = ops(model)
    assert lower_quant(model) == 0
    assert ops(model) == before
    assert "com.microsoft" not in model.opset_imports


FOREIGN = {
    "one number": ("DequantizeLinear<axis = 1>(w, scale)", "int8", (1,)),
    "groups of 4": ("DequantizeLinear<axis = 0, block_size = 4>(w, scale, zero)", "uint8", (2, 8)),
    "per tensor": ("DequantizeLinear(w, scale)", "int8", ()),
    "channels along the sum": ("DequantizeLinear<axis = 0>(w, scale)", "int8", (8,)),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_q_dq_of_another_kind_stays_and_runs(case, rng, run):
    call, dtype, shape = FOREIGN[case]
    axes = ", ".join(str(size) for size in shape)
    text = f"""main (float[n, 8] x, {dtype}[8, 8] w, float[{axes}] scale, {dtype}[{axes}] zero)
    => (float[n, 8] y) {{
        m = {call}
        y = MatMul(x, m)
    }}"""
    if not shape:
        text = text.replace("float[] scale", "float scale").replace(
            f"{dtype}[] zero", f"{dtype} zero"
        )
    model = build(
        text,
        w=rng.integers(0, 100, (8, 8)).astype(dtype),
        scale=np.abs(rng.standard_normal(shape)).astype(np.float32),
        zero=np.full(shape, 3, dtype),
    )
    low = lowered(model, 0)
    x = {"x": random(rng, 4, 8)}
    assert run(low, x)["y"].shape == exact(model, x)["y"].shape


ROUNDING = """main (
    float[n, 32] x, float[32, 16] w, float down, float up, {kind} zero, {kind} other
) => (float[n, 16] y) {{
    i = QuantizeLinear(x, down, zero)
    a = DequantizeLinear(i, up, {back})
    y = MatMul(a, w)
}}"""


def rounding(kind: str, rng: np.random.Generator, up: float, other: int, back: str) -> ir.Model:
    """x @ w with x rounded in steps of 0.05 around 1, and read in steps of `up` around `other`."""
    model = build(
        ROUNDING.format(kind=kind, back=back),
        w=random(rng, 32, 16),
        down=np.float32(0.05),
        up=np.float32(up),
        zero=np.array(1, kind),
        other=np.array(other, kind),
    )
    return quantised(model)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("back", ["zero", "other"], ids=["one zero point", "an equal one"])
def test_an_activation_that_returns_on_its_own_grid_is_multiplied_as_integers(kind, back, rng, run):
    model = rounding(kind, rng, 0.05, 1, back)
    low = lowered(model, 1)
    assert ops(low) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    x = {"x": random(rng, 5, 32)}
    np.testing.assert_allclose(run(low, x)["y"], exact(model, x)["y"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "up", "other"),
    [("int8", 0.1, 1), ("int8", 0.05, 5), ("int16", 0.05, 1), ("uint16", 0.05, 1)],
    ids=["another scale", "another zero point", "int16", "uint16"],
)
def test_an_activation_on_no_single_grid_of_8_bits_keeps_its_rounding(kind, up, other, rng, run):
    model = rounding(kind, rng, up, other, "other")
    low = lowered(model, 1)
    assert ops(low) == ["QuantizeLinear", "DequantizeLinear", "MatMulNBits"]
    x = {"x": random(rng, 5, 32)}
    before = model.clone()
    before.graph.outputs[0] = next(n for n in before.graph if n.outputs[0].name == "a").outputs[0]
    activation = exact(before, x)["a"]
    bound = block_bound(activation, dequantised(model, "w"), 32)
    assert (np.abs(run(low, x)["y"] - exact(model, x)["y"]) <= bound + 1e-4).all()


def test_rounding_by_an_operator_of_another_domain_is_not_understood(rng):
    model = rounding("int8", rng, 0.05, 1, "other")
    next(node for node in model.graph if node.op_type == "QuantizeLinear").domain = "com.example"
    assert ops(lowered(model, 1))[-1] == "MatMulNBits"
