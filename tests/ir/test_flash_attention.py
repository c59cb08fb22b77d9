"""`optc::FlashAttention` on ONNX Runtime agrees with float64 numpy, whatever its parts.

The same cases hold for every realisation of the op; here it is the function body.
"""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import onnx_ir as ir
import pytest
from attention_model import attention_model, make_inputs, run_attention

from optc.core.context import Array
from optc.core.errors import PassContractError
from optc.ir.flash_attention import (
    DOMAIN,
    AttentionSpec,
    add_flash_attention,
    flash_attention_nodes,
    read_spec,
    remove_unused_overloads,
)
from optc.plugins.flash_attention.reference import flash_attention, round_off

PLAIN = AttentionSpec(0.2)
CAUSAL = AttentionSpec(0.2, causal=True)
GROWING = AttentionSpec(0.2, causal=True, cache="concat", lengths=True)
STATIC = AttentionSpec(0.2, causal=True, cache="static", lengths=True)

EVERY_SPEC = [
    AttentionSpec(0.2, causal, window, softcap, mask, cache, lengths)
    for mask, cache, lengths, causal, window, softcap in product(
        ["", "bool", "bias"],
        ["", "concat", "static"],
        [False, True],
        [False, True],
        [0, 2],
        [0.0, 3.0],
    )
    if lengths or cache != "static"
]


def label(spec: AttentionSpec) -> str:
    return f"{spec.overload or 'plain'}{'_softcap' if spec.softcap else ''}"


def assert_agrees(spec: AttentionSpec, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run the body, compare it with numpy, return what it gave."""
    given, expected = run_attention(spec, inputs), flash_attention(spec, inputs)
    np.testing.assert_allclose(
        given["output"], expected["output"], rtol=0, atol=round_off(spec, inputs)
    )
    for name in ("present_key", "present_value"):
        if name in expected:
            assert_caches_equal(given[name], expected[name], inputs, name)
    return given


def assert_caches_equal(given: Array, expected: Array, inputs: dict[str, Array], name: str) -> None:
    assert given.shape == expected.shape
    full = np.full(given.shape[0], given.shape[2])
    for row, length in enumerate(inputs.get("lengths", full)):
        np.testing.assert_array_equal(given[row, :, :length], expected[row, :, :length], name)


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=label)
def test_every_combination_of_parts(spec: AttentionSpec) -> None:
    assert_agrees(spec, make_inputs(spec))


@pytest.mark.parametrize("dim", [32, 64, 128, 256])
@pytest.mark.parametrize("spec", [CAUSAL, GROWING, STATIC], ids=label)
def test_head_sizes(spec: AttentionSpec, dim: int) -> None:
    assert_agrees(dataclasses.replace(spec, scale=dim**-0.5), make_inputs(spec, dims=(dim, dim)))


@pytest.mark.parametrize("spec", [CAUSAL, GROWING, STATIC], ids=label)
def test_values_may_have_another_size_than_keys(spec: AttentionSpec) -> None:
    assert_agrees(spec, make_inputs(spec, dims=(32, 48)))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (8, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("spec", [CAUSAL, GROWING, STATIC], ids=label)
def test_grouped_and_multi_query_heads(spec: AttentionSpec, heads: tuple[int, int]) -> None:
    assert_agrees(spec, make_inputs(spec, heads=heads))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("spec", [CAUSAL, GROWING, STATIC], ids=label)
def test_one_new_token(spec: AttentionSpec, batch: int) -> None:
    assert_agrees(spec, make_inputs(spec, rows=1, batch=batch))


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("lengths", [False, True])
def test_a_growing_cache_that_is_still_empty(lengths: bool, window: int) -> None:
    spec = AttentionSpec(0.2, causal=True, window=window, cache="concat", lengths=lengths)
    assert_agrees(spec, make_inputs(spec, past=0, lengths=[3, 3] if lengths else None))


@pytest.mark.parametrize("spec", [GROWING, STATIC], ids=label)
@pytest.mark.parametrize("lengths", [[3, 3], [7, 3], [5, 7], [4, 6]], ids=str)
def test_rows_of_different_length_and_rollback(spec: AttentionSpec, lengths: list[int]) -> None:
    """A row shorter than the cache has stale keys behind its end: nobody may see them."""
    assert_agrees(spec, make_inputs(spec, lengths=lengths))


@pytest.mark.parametrize("window", [1, 2, 5, 100])
@pytest.mark.parametrize("spec", [CAUSAL, GROWING, STATIC], ids=label)
def test_windows_from_one_key_to_more_than_there_are(spec: AttentionSpec, window: int) -> None:
    assert_agrees(dataclasses.replace(spec, window=window), make_inputs(spec))


@pytest.mark.parametrize("kind", ["bool", "bias"])
@pytest.mark.parametrize("window", [0, 2])
def test_a_row_that_sees_nothing_gives_zeros(kind: str, window: int) -> None:
    spec = AttentionSpec(0.2, window=window, mask=kind)
    inputs = make_inputs(spec)
    mask = np.ones((2, 1, 3, 7), bool)
    mask[0, 0, 1] = False
    inputs["mask"] = mask if kind == "bool" else np.where(mask, 0, -np.inf).astype(np.float32)
    given = assert_agrees(spec, inputs)
    np.testing.assert_array_equal(given["output"][0, :, 1], 0)
    assert np.abs(given["output"][0, :, 2]).min() > 0


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_of_length_zero_gives_zeros(causal: bool) -> None:
    spec = AttentionSpec(0.2, causal=causal, lengths=True)
    given = assert_agrees(spec, make_inputs(spec, lengths=[0, 7]))
    np.testing.assert_array_equal(given["output"][0], 0)


def test_queries_before_the_first_key_give_zeros() -> None:
    """Bottom-right alignment: of 3 queries over 1 key, only the last sees it."""
    given = assert_agrees(CAUSAL, make_inputs(CAUSAL, keys=1))
    np.testing.assert_array_equal(given["output"][:, :, :2], 0)


def test_the_last_query_sees_the_last_key() -> None:
    inputs = make_inputs(CAUSAL, rows=2, keys=5)
    inputs["value"][:] = 0
    inputs["value"][:, :, 4] = 1
    output = run_attention(CAUSAL, inputs)["output"]
    np.testing.assert_array_equal(output[:, :, 0], 0)
    assert output[:, :, 1].min() > 0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("spec", [PLAIN, CAUSAL, GROWING, STATIC], ids=label)
def test_large_scores_do_not_overflow(spec: AttentionSpec, sign: int) -> None:
    """exp(89) is already infinite in float32; these scores reach 10^5."""
    inputs = make_inputs(spec)
    inputs["query"] *= sign * 1e5
    given = run_attention(spec, inputs)["output"]
    expected = flash_attention(spec, inputs)["output"]
    assert np.isfinite(given).all()
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_a_mask_of_the_lowest_float_hides_like_a_boolean_one() -> None:
    spec = AttentionSpec(0.2, mask="bias")
    inputs = make_inputs(spec)
    visible = np.random.default_rng(1).random((2, 1, 3, 7)) > 0.3
    lowest = np.finfo(np.float32).min
    hidden = run_attention(spec, inputs | {"mask": np.where(visible, 0, lowest).astype("f4")})
    masked = run_attention(AttentionSpec(0.2, mask="bool"), inputs | {"mask": visible})
    np.testing.assert_allclose(hidden["output"], masked["output"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", [PLAIN, CAUSAL, GROWING, STATIC], ids=label)
def test_half_precision(spec: AttentionSpec) -> None:
    assert_agrees(spec, make_inputs(spec, dtype=np.float16))


@pytest.mark.parametrize("layout", ["concat", "static"])
@pytest.mark.parametrize("chunks", [[6], [4, 2], [2, 2, 2], [1] * 6], ids=str)
@pytest.mark.parametrize("window", [0, 3])
def test_prefill_chunks_and_single_steps_agree(layout: str, chunks: list[int], window: int) -> None:
    """However six tokens are fed, each sees the same keys."""
    whole = AttentionSpec(0.2, causal=True, window=window)
    tokens = make_inputs(whole, rows=6, keys=6)
    spec = dataclasses.replace(whole, cache=layout, lengths=True)
    capacity = 8 if layout == "static" else 0
    cache = {f"past_{n}": np.zeros((2, 2, capacity, 32), np.float32) for n in ("key", "value")}
    outputs, done = [], 0
    for count in chunks:
        chunk = {name: array[:, :, done : done + count] for name, array in tokens.items()}
        done += count
        given = run_attention(spec, {**chunk, **cache, "lengths": np.full(2, done)})
        cache = {f"past_{n}": given[f"present_{n}"] for n in ("key", "value")}
        outputs.append(given["output"])
    expected = flash_attention(whole, tokens)["output"]
    joined = np.concatenate(outputs, axis=2)
    np.testing.assert_allclose(joined, expected, rtol=0, atol=round_off(whole, tokens))


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=label)
def test_the_node_says_what_it_is(spec: AttentionSpec) -> None:
    """Through the file format and back: scale and softcap are exact in float32."""
    exact = dataclasses.replace(spec, scale=0.25)
    model = ir.from_proto(ir.to_proto(attention_model(exact, make_inputs(exact))))
    (node,) = flash_attention_nodes(model)
    assert read_spec(node) == exact


@pytest.mark.parametrize("spec", [PLAIN, GROWING, STATIC], ids=label)
def test_output_shapes_are_described(spec: AttentionSpec) -> None:
    shapes = {"query": [2, 4, 3, 32], "key": [2, 2, 3, 32], "value": [2, 2, 3, 48]}
    shapes |= {"past_key": [2, 2, 9, 32], "past_value": [2, 2, 9, 48]} if spec.cache else {}
    values = {name: ir.val(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}
    values |= {"lengths": ir.val("lengths", ir.DataType.INT64, [2])} if spec.lengths else {}
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=11)
    node = add_flash_attention(model, spec, values, name="site")
    assert node.outputs[0].name == "site"
    assert node.outputs[0].shape == ir.Shape([2, 4, 3, 48])
    grown = 9 if spec.cache == "static" else None
    assert [output.shape for output in node.outputs[1:]] == [
        ir.Shape([2, 2, grown, dim]) for dim in ((32, 48) if spec.cache else ())
    ]


def test_inputs_that_do_not_fit_the_spec_are_refused() -> None:
    inputs = make_inputs(PLAIN)
    with pytest.raises(PassContractError) as caught:
        attention_model(AttentionSpec(0.2, mask="bool"), inputs)
    assert str(caught.value) == (
        "site: inputs ['key', 'query', 'value'] do not fit the spec, "
        "which needs ['key', 'mask', 'query', 'value']"
    )


def test_overloads_that_nobody_calls_are_dropped() -> None:
    model = attention_model(CAUSAL, make_inputs(CAUSAL))
    values = {value.name: value for value in model.graph.inputs}
    add_flash_attention(model, PLAIN, values, name="never inserted")
    assert [key[2] for key in model.functions] == ["causal", ""]
    remove_unused_overloads(model)
    assert list(model.functions) == [(DOMAIN, "FlashAttention", "causal")]
