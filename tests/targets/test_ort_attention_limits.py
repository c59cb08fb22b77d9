"""What ONNX Runtime's attention kernels refuse or get wrong: why the lowering is not simpler.

A test that fails here after an update says that a limit is gone, and what may be made simpler.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from lowered_attention import make_inputs, to_rows
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.reference import flash_attention, round_off

PLAIN = AttentionSpec(0.2)
CAUSAL = AttentionSpec(0.2, causal=True)
GROWING = AttentionSpec(0.2, causal=True, cache="concat", lengths=True)
STATIC = AttentionSpec(0.2, causal=True, cache="static", lengths=True)

REFUSED = (ort_errors.InvalidArgument, ort_errors.Fail, ort_errors.RuntimeException)


def run_node(node: ir.Node, feeds: dict[str, Array]) -> list[Array]:
    """One operator as a graph; values without a feed are absent."""
    kind = next(iter(feeds.values())).dtype
    for output in node.outputs:
        output.type = ir.TensorType(ir.DataType.from_numpy(kind))
    values = [value for value in node.inputs if value is not None]
    imports = {"": 24, "com.microsoft": 1}
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports=imports, name="one")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    proto = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, ["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def values_of(names: list[str], feeds: dict[str, Array]) -> list[ir.Value | None]:
    made = {
        n: ir.val(n, ir.DataType.from_numpy(a.dtype), [None] * a.ndim) for n, a in feeds.items()
    }
    return [made.get(name) for name in names]


def grouped(
    spec: AttentionSpec, inputs: dict[str, Array], *, query_seqlens: bool = True, window: int = 0
) -> tuple[Array, Array]:
    """`GroupQueryAttention` as one would write it for a site; output [B,Hq,S,Dv] and keys."""
    feeds = {name: to_rows(inputs[name]) for name in ("query", "key", "value")}
    feeds |= {name: inputs[name] for name in ("past_key", "past_value") if name in inputs}
    batch, heads, count, _ = inputs["query"].shape
    held = inputs["past_key"].shape[2] if spec.cache else 0
    lengths = inputs.get("lengths", np.full(batch, held + inputs["key"].shape[2]))
    feeds["last"] = (lengths - 1).astype(np.int32)
    feeds["total"] = np.array(lengths.max(), np.int32)
    if "mask" in inputs:
        feeds["bias"] = inputs["mask"]
    if spec.cache and query_seqlens:
        feeds["news"] = np.full(batch, count, np.int32)
    names = ["query", "key", "value", "past_key", "past_value", "last", "total", "", "", "", "bias"]
    names += [""] * 5 + ["news"]
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": inputs["key"].shape[1],
        "scale": spec.scale,
        "causal": int(spec.causal),
        "local_window_size": window or spec.window or -1,
    }
    operands = values_of(names, feeds)
    node = ir.node(
        "GroupQueryAttention", operands, attributes, domain="com.microsoft", num_outputs=3
    )
    output, keys, _ = run_node(node, feeds)
    return output.reshape(batch, count, heads, -1).transpose(0, 2, 1, 3), keys


def error(spec: AttentionSpec, inputs: dict[str, Array], output: Array) -> float:
    return float(np.abs(output - flash_attention(spec, inputs)["output"]).max())


def test_grouped_without_query_seqlens_takes_no_chunk_of_several_rows() -> None:
    inputs = make_inputs(STATIC)
    with pytest.raises(REFUSED, match="batch_size must be 1 when sequence_length > 1 and past"):
        grouped(STATIC, inputs, query_seqlens=False)
    output, _ = grouped(STATIC, inputs)
    assert error(STATIC, inputs, output) <= round_off(STATIC, inputs)


def test_grouped_keeps_the_keys_that_a_rollback_drops() -> None:
    """As the op does: what came in keeps its size, so that a buffer with room is one."""
    inputs = make_inputs(GROWING, lengths=[3, 3])
    _, keys = grouped(GROWING, inputs)
    assert keys.shape[2] == inputs["past_key"].shape[2] == 4
    assert flash_attention(GROWING, inputs)["present_key"].shape[2] == 4


def test_grouped_that_is_not_causal_gives_no_number_for_a_row_that_is_hidden() -> None:
    spec = dataclasses.replace(PLAIN, mask="bias")
    inputs = make_inputs(spec, keys=3)
    inputs["mask"][:, :, 1] = -np.inf
    assert np.isnan(grouped(spec, inputs)[0][:, :, 1]).all()


@pytest.mark.parametrize(
    ("spec", "sizes", "message"),
    [
        (CAUSAL, {"keys": 7}, "query and key must have the same sequence length"),
        (CAUSAL, {"keys": 3, "dims": (32, 48)}, "'value' is expected to have same"),
        (CAUSAL, {"keys": 3, "dims": (12, 12)}, "head_size must be a multiple of 8"),
        (PLAIN, {"keys": 7}, "query and key must have the same sequence length"),
        (dataclasses.replace(STATIC, causal=False), {}, "query_seqlens"),
        (AttentionSpec(0.2, window=2), {"keys": 3}, "local_window_size"),
    ],
    ids=str,
)
def test_grouped_refuses(spec: AttentionSpec, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(REFUSED, match=message):
        grouped(spec, make_inputs(spec, **sizes))


def test_groupeds_window_counts_the_query_itself() -> None:
    """As ours does; kernels of other libraries count only what lies to the left."""
    spec = dataclasses.replace(CAUSAL, window=2)
    inputs = make_inputs(spec, rows=9, keys=9)
    assert error(spec, inputs, grouped(spec, inputs)[0]) <= round_off(spec, inputs)
    assert error(spec, inputs, grouped(spec, inputs, window=1)[0]) > 0.1


def standard(spec: AttentionSpec, inputs: dict[str, Array], *, valid: bool) -> Array:
    feeds = {name: inputs[name] for name in ("query", "key", "value")}
    if valid:
        feeds["valid"] = np.full(inputs["query"].shape[0], inputs["key"].shape[2])
    operands = values_of(["query", "key", "value", "", "", "", "valid"], feeds)
    while operands[-1] is None:
        operands.pop()
    node = ir.node("Attention", operands, {"is_causal": 1, "scale": spec.scale})
    return run_node(node, feeds)[0]


def test_standard_attention_aligns_at_the_top_left_unless_it_is_given_lengths() -> None:
    inputs = make_inputs(CAUSAL, keys=7)
    assert error(CAUSAL, inputs, standard(CAUSAL, inputs, valid=False)) > 0.1
    bottom_right = standard(CAUSAL, inputs, valid=True)
    assert error(CAUSAL, inputs, bottom_right) <= round_off(CAUSAL, inputs)


def multi_head(inputs: dict[str, Array], hidden: float) -> Array:
    """`MultiHeadAttention` whose first query is hidden by a bias of `hidden`."""
    feeds = {name: to_rows(inputs[name]) for name in ("query", "key", "value")}
    feeds["bias"] = np.zeros((1, 1, 3, 3), np.float32)
    feeds["bias"][:, :, 0] = hidden
    operands = values_of(["query", "key", "value", "", "", "bias"], feeds)
    attributes = {"num_heads": 4, "scale": 0.2}
    node = ir.node("MultiHeadAttention", operands, attributes, domain="com.microsoft")
    return run_node(node, feeds)[0]


def test_multi_head_attention_has_no_zeros_for_a_hidden_row() -> None:
    inputs = make_inputs(PLAIN, heads=(4, 4), keys=3)
    assert np.isnan(multi_head(inputs, -np.inf)[:, 0]).all()
    average = multi_head(inputs, float(np.finfo(np.float32).min))[:, 0]
    expected = to_rows(inputs["value"]).mean(axis=1)
    np.testing.assert_allclose(average, expected, rtol=0, atol=1e-6)
