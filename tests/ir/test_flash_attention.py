"""`optc::FlashAttention` on ONNX Runtime agrees with float64 numpy, whatever its parts.

The suite is `attention_cases.py`; here the realisation is the function body.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from attention_cases import (
    CAUSAL,
    EVERY_SPEC,
    GROWING,
    PLAIN,
    STATIC,
    Case,
    cases,
    check,
    label,
    make_inputs,
)
from attention_model import attention_model, run_attention

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


@pytest.mark.parametrize("case", cases("float32", "float16"), ids=str)
def test_conformance(case: Case) -> None:
    check(case, run_attention)


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
