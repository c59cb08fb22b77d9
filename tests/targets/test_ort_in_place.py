"""Which caches may be one memory on both sides is read from the engine's edges."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from lowered_attention import make_inputs, typed_model
from onnx import TensorProto, helper
from tiny_generator import tiny_language_model

from optc.ir.flash_attention import AttentionSpec
from optc.targets.ort import Ort
from optc.targets.ort_in_place import caches_in_place

KEY = "past_key_values.0.key"
BOTH = {KEY, "past_key_values.0.value"}


def static() -> onnx.ModelProto:
    return ir.to_proto(Ort().lower(tiny_language_model("static", 24)))


def test_kernels_and_the_static_body_update_in_place() -> None:
    growing = ir.to_proto(Ort().lower(tiny_language_model("concat")))
    body = ir.to_proto(tiny_language_model("static", 24))
    assert caches_in_place(static()) == caches_in_place(growing) == BOTH
    assert caches_in_place(body) == BOTH


def test_a_growing_function_body_does_not() -> None:
    assert caches_in_place(ir.to_proto(tiny_language_model("concat"))) == frozenset()


def test_a_past_with_a_second_reader_is_left_alone() -> None:
    model = static()
    model.graph.node.append(helper.make_node("Identity", [KEY], ["other"]))
    assert caches_in_place(model) == BOTH - {KEY}


def test_a_branch_is_a_reader_too() -> None:
    model = static()
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", [KEY], ["inner"])], "b", [], [out])
    node = helper.make_node("If", ["c"], ["other"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    assert caches_in_place(model) == BOTH - {KEY}


def int8(layout: str) -> onnx.ModelProto:
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
    lowered = Ort().lower(model)
    return ir.to_proto(lowered)


@pytest.mark.parametrize("layout", ["concat", "static"])
def test_a_choice_of_kernels_that_all_update_in_place_does_too(layout: str) -> None:
    model = int8(layout)
    assert "If" in {node.op_type for node in model.graph.node}
    assert caches_in_place(model) == BOTH


def test_a_choice_of_kernels_one_of_which_reads_more_does_not() -> None:
    model = int8("static")
    node = next(node for node in model.graph.node if node.op_type == "If")
    graph = node.attribute[1].g
    graph.node.append(helper.make_node("Identity", [KEY], ["other"]))
    assert caches_in_place(model) == BOTH - {KEY}


def test_a_past_that_is_an_output_too_is_left_alone() -> None:
    model = static()
    model.graph.output.append(next(v for v in model.graph.input if v.name == KEY))
    assert caches_in_place(model) == BOTH - {KEY}


def test_crossed_outputs_are_left_alone() -> None:
    model = static()
    node = next(n for n in model.graph.node if KEY in n.input)
    at = [i for i, name in enumerate(node.output) if name.startswith("present")]
    node.output[at[0]], node.output[at[1]] = node.output[at[1]], node.output[at[0]]
    assert caches_in_place(model) == frozenset()
