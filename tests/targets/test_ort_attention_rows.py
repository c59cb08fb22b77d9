"""Head splitting around a lowered attention goes away where it can, and only there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec, add_flash_attention
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort

SPLIT = """
    to_heads = Constant <value_ints = [0, 0, 4, 16]> ()
    q4 = Reshape (q, to_heads)
    k4 = Reshape (k, to_heads)
    v4 = Reshape (v, to_heads)
    qh = Transpose <perm = [0, 2, 1, 3]> (q4)
    kh = Transpose <perm = [0, 2, 1, 3]> (k4)
    value = Transpose <perm = [0, 2, 1, 3]> (v4)
"""
TURN = """
    query = RotaryEmbedding (qh, cos, sin)
    key = RotaryEmbedding (kh, cos, sin)
"""
SAME = """
    query = Identity (qh)
    key = Identity (kh)
"""
JOIN = """
    swapped = Transpose <perm = [0, 2, 1, 3]> (attended)
    to_rows = Constant <value_ints = [0, 0, 64]> ()
    joined = Reshape (swapped, to_rows)
    y = Neg (joined)
"""


def site(
    lines: str, outputs: str = "float[batch, new, 64] y", joined: str = "batch, new"
) -> ir.Model:
    """A causal attention of `query`, `key` and `value` that gives `attended`."""
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        site (float[batch, new, 64] q, float[batch, new, 64] k, float[batch, new, 64] v,
              float[batch, new, 8] cos, float[batch, new, 8] sin) => ({outputs})
        <float[batch, new, 4, 16] q4, float[batch, new, 4, 16] k4, float[batch, new, 4, 16] v4,
         float[batch, 4, new, 16] qh, float[batch, 4, new, 16] kh,
         float[batch, 4, new, 16] query, float[batch, 4, new, 16] key,
         float[batch, 4, new, 16] value, float[batch, 4, new, 16] attended,
         float[batch, new, 4, 16] swapped, float[{joined}, 64] joined>
        {{ {lines.replace("ATTEND", "attended = Identity (query)")} }}"""
    )
    values = {value.name: value for node in model.graph for value in node.outputs}
    stub = values["attended"].producer()
    assert stub is not None
    inputs = {name: values[name] for name in ("query", "key", "value")}
    node = add_flash_attention(model, AttentionSpec(0.25, causal=True), inputs, name="attention")
    model.graph.insert_before(stub, node)
    stub.replace_input_with(0, node.outputs[0])
    ir.convenience.replace_all_uses_with(
        stub.outputs[0], node.outputs[0], replace_graph_outputs=True
    )
    model.graph.remove(stub, safe=True)
    return model


def feeds() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    found = {name: rng.standard_normal((2, 5, 64), np.float32) for name in "qkv"}
    angle = rng.standard_normal((2, 5, 8), np.float32)
    return found | {"cos": np.cos(angle), "sin": np.sin(angle)}


def lowered_ops(model: ir.Model) -> Counter[str]:
    """Operators after lowering, which computes what the graph did."""
    lowered = Ort().lower(model)
    with open_model(model) as before, open_model(lowered) as after:
        expected, given = before.run(feeds()), after.run(feeds())
    assert list(given) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(given[name], array, rtol=0, atol=1e-5)
    return Counter(node.op_type for node in lowered.graph)


def test_splitting_and_joining_heads_goes_away_around_a_rotary_embedding() -> None:
    model = site(SPLIT + TURN + "ATTEND" + JOIN)
    found = lowered_ops(model)
    assert not {"Transpose", "Reshape"} & set(found)
    assert found["RotaryEmbedding"] == 2
    turned = [n for n in Ort().lower(model).graph if n.op_type == "RotaryEmbedding"]
    assert [node.attributes["num_heads"].as_int() for node in turned] == [4, 4]


def test_a_rotated_value_that_others_use_is_not_rotated_twice() -> None:
    other = "other = Neg (key)"
    outputs = "float[batch, new, 64] y, float[batch, 4, new, 16] other"
    found = lowered_ops(site(SPLIT + TURN + other + "\nATTEND" + JOIN, outputs))
    assert found["RotaryEmbedding"] == 2
    assert found["Transpose"] == 2


@pytest.mark.parametrize(
    ("after", "outputs", "transposes"),
    [
        ("z = Neg (attended)", "float[batch, new, 64] y, float[batch, 4, new, 16] z", 1),
        ("z = Neg (swapped)", "float[batch, new, 64] y, float[batch, new, 4, 16] z", 0),
        ("", "float[batch, new, 64] y, float[batch, new, 4, 16] swapped", 2),
        ("", "float[batch, new, 64] y, float[batch, 4, new, 16] attended", 1),
    ],
    ids=["heads", "apart", "apart, an output", "heads, an output"],
)
def test_others_get_the_output_in_the_form_they_know(
    after: str, outputs: str, transposes: int
) -> None:
    model = site(SPLIT + TURN + "ATTEND" + JOIN + after, outputs)
    assert lowered_ops(model)["Transpose"] == transposes


def test_a_reshape_that_moves_tokens_into_the_batch_is_not_head_joining() -> None:
    """[B,S,H,D] to [1,B*S,H*D]: as many elements in a row, and not what the kernel gives."""
    moved = JOIN.replace("[0, 0, 64]", "[1, -1, 64]")
    model = site(SPLIT + TURN + "ATTEND" + moved, "float[1, tokens, 64] y", "1, tokens")
    found = lowered_ops(model)
    assert found["Reshape"] == 2


def test_operands_that_were_never_apart_are_transposed() -> None:
    found = lowered_ops(site(SPLIT + SAME + "ATTEND" + JOIN))
    assert found["Transpose"] == 4
    assert found["GroupQueryAttention"] == 1
