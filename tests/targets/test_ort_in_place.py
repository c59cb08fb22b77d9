"""Which caches may be one memory on both sides is read from the edges of the lowered graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from lowered_attention import make_inputs, typed_model
from tiny_generator import tiny_language_model

from optc.ir.flash_attention import AttentionSpec
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort
from optc.targets.ort_in_place import caches_in_place, note_in_place

CAPACITY = 24
KEY, VALUE = BOTH = ("past_key_values.0.key", "past_key_values.0.value")


def static() -> ir.Model:
    return Ort().lower(tiny_language_model("static", CAPACITY))


def past_key(model: ir.Model) -> ir.Value:
    return next(value for value in model.graph.inputs if value.name == KEY)


def test_kernels_and_the_static_body_update_in_place() -> None:
    growing, body = tiny_language_model("concat"), tiny_language_model("static", CAPACITY)
    for model in (static(), Ort().lower(growing), body):
        assert caches_in_place(model) == set(BOTH)
    assert caches_in_place(growing) == frozenset()


def test_lowering_notes_it() -> None:
    assert static().metadata_props["optc.caches_in_place"] == f"{KEY} {VALUE}"


@pytest.mark.parametrize(("op", "found"), [("Identity", {VALUE}), ("Shape", set(BOTH))])
def test_a_second_reader_stands_in_the_way_unless_it_reads_the_shape_only(
    op: str, found: set[str]
) -> None:
    model = static()
    model.graph.append(ir.node(op, [past_key(model)]))
    assert caches_in_place(model) == found


def test_a_branch_is_a_reader_too() -> None:
    model = static()
    inner = ir.node("Identity", [past_key(model)])
    branch = ir.Graph([], inner.outputs, nodes=[inner], name="branch")
    other = ir.Graph([], [], nodes=[], name="other")
    condition = ir.val("condition", ir.DataType.BOOL, [])
    branches = {"then_branch": branch, "else_branch": other}
    model.graph.append(ir.node("If", [condition], branches))
    assert caches_in_place(model) == {VALUE}


def int8(layout: str) -> ir.Model:
    """An int8 cache, whose kernel is chosen by an `If`."""
    spec = AttentionSpec(0.2, causal=True, cache=layout, lengths=True, int8=True)
    inputs = make_inputs(spec)
    model = typed_model(spec, inputs)
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for part in ("key", "value"):
        past = values[f"past_{part}"]
        if layout == "static":
            past.shape = ir.Shape(["batch", *inputs["past_key"].shape[1:]])
        past.name = f"past_key_values.0.{part}"
        values[f"site_0_present_{part}"].name = f"present.0.{part}"
    return Ort().lower(model)


@pytest.mark.parametrize("layout", ["concat", "static"])
def test_a_choice_of_kernels_that_all_update_in_place_does_too(layout: str) -> None:
    model = int8(layout)
    assert "If" in {node.op_type for node in model.graph}
    assert caches_in_place(model) == set(BOTH)


def test_a_choice_of_kernels_one_of_which_reads_more_does_not() -> None:
    model = int8("static")
    node = next(node for node in model.graph if node.op_type == "If")
    node.attributes["else_branch"].as_graph().append(ir.node("Identity", [past_key(model)]))
    assert caches_in_place(model) == {VALUE}


def test_a_past_that_is_an_output_too_is_left_alone() -> None:
    model = static()
    model.graph.outputs.append(past_key(model))
    assert caches_in_place(model) == {VALUE}


def test_crossed_outputs_are_left_alone() -> None:
    model = static()
    key, value = (v for v in model.graph.outputs if str(v.name).startswith("present"))
    key.name, value.name = value.name, key.name
    assert caches_in_place(model) == frozenset()


BRANCHES = {
    "TensorScatter<axis = 2>(past, new, cache_lengths)": set(BOTH),
    "Add(past, one)": {VALUE},
}


@pytest.mark.parametrize("other", BRANCHES)
def test_every_branch_must_update_in_place(other: str) -> None:
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        branched (int64[B,S] input_ids, int64[B] cache_lengths, float[B,1,8,4] past,
                  float[B,1,8,4] values)
            => (float[B,1,1,1] logits, float[B,1,8,4] present, float[B,1,8,4] moved) {{
            tokens = Cast<to = 1>(input_ids)
            axes = Constant<value_ints = [1, 3]>()
            tokens_4d = Unsqueeze(tokens, axes)
            width = Constant<value_ints = [1, 1, 1, 4]>()
            new = Expand(tokens_4d, width)
            one = Constant<value_float = 1.0>()
            count = Size(input_ids)
            two = Constant<value_int = 2>()
            many = Greater(count, two)
            present = If (many) <
                then_branch = many_new () => (float[B,1,8,4] t)
                    {{ t = TensorScatter<axis = 2>(past, new, cache_lengths) }},
                else_branch = few_new () => (float[B,1,8,4] e) {{ e = {other} }}
            >
            moved = TensorScatter<axis = 2>(values, new, cache_lengths)
            logits = ReduceMax<keepdims = 1>(present)
        }}"""
    )
    values = {v.name: v for v in (*model.graph.inputs, *model.graph.outputs)}
    for part, names in {"key": ("past", "present"), "value": ("values", "moved")}.items():
        values[names[0]].name = f"past_key_values.0.{part}"
        values[names[1]].name = f"present.0.{part}"
    assert caches_in_place(model) == BRANCHES[other]
    note_in_place(model)
    with open_model(model) as session:
        cache = session.new_cache(1, 8)
        if BRANCHES[other] != set(BOTH):
            assert cache is None
            return
        assert cache is not None
        for tokens, length in ([1, 2, 3], 0), ([4, 5], 3):
            feeds = {"input_ids": np.array([tokens]), "cache_lengths": np.array([length])}
            cache.step(feeds, ("logits",))
        for buffer in cache._buffers.values():
            assert buffer[0, 0, :, 0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]


def test_what_a_model_came_with_is_not_believed() -> None:
    model = tiny_language_model("concat")
    model.metadata_props["optc.caches_in_place"] = " ".join(BOTH)
    note_in_place(model)
    assert model.metadata_props == {}
