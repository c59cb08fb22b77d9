"""The encoder goes into a branch and comes back in line, and the graph means the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from encoder_graphs import encoder_decoder, with_cache

from optc.ir.interface import complete_feeds, ports
from optc.ir.verify import verify_model
from optc.rewrite.encode_once import encoder_in_line


def kinds(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


@pytest.fixture
def model(graph) -> ir.Model:
    return with_cache(graph, encoder_decoder(mask=True))


def test_in_line_there_is_no_branch_and_a_first_call_is_the_same(model, run):
    feeds = {
        "input_ids": np.arange(10).reshape(2, 5),
        "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "decoder_input_ids": np.arange(6).reshape(2, 3),
    }
    feeds = complete_feeds(ports(model.graph.inputs), feeds)
    expected = run(model, feeds)
    with encoder_in_line(model):
        verify_model(model)
        assert "If" not in kinds(model.graph)
        for name, array in run(model, feeds).items():
            np.testing.assert_allclose(array, expected[name], atol=1e-6)
    verify_model(model)
    assert kinds(model.graph).count("If") == 1
    for name, array in run(model, feeds).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6)


def test_going_in_line_and_back_changes_nothing(model):
    before = [sorted(kinds(graph)) for graph in model.graphs()]
    with encoder_in_line(model):
        pass
    assert [sorted(kinds(graph)) for graph in model.graphs()] == before


def test_what_is_added_for_the_encoder_goes_into_the_branch_with_it(model):
    with encoder_in_line(model):
        joins = [n for n in model.graph if n.op_type == "Concat"]
        key = next(n for n in joins if n.outputs[0].is_graph_output())
        new = key.inputs[1]
        doubled = ir.node("Add", [new, new], name="of_the_encoder")
        doubled.outputs[0].name, doubled.outputs[0].type = "of_the_encoder", new.type
        model.graph.insert_before(key, doubled)
        key.replace_input_with(1, doubled.outputs[0])
    verify_model(model)
    (node,) = [n for n in model.graph if n.op_type == "If"]
    inside = [n.name for n in node.attributes["then_branch"].as_graph()]
    assert "of_the_encoder" in inside


def test_another_if_is_left_alone():
    model = ir.from_onnx_text("""<ir_version: 11, opset_import: ["": 24]>
    any (bool flag, float[N] x) => (float[N] y) {
        y = If (flag) <
            then_branch = g1 () => (float[N] a) { a = Neg (x) },
            else_branch = g2 () => (float[N] b) { b = Abs (x) }
        >
    }""")
    with encoder_in_line(model):
        assert kinds(model.graph) == ["If"]


def test_an_if_that_hands_an_input_through_and_feeds_no_cache_is_left_alone():
    model = ir.from_onnx_text("""<ir_version: 11, opset_import: ["": 24]>
    any (bool flag, float[N] x) => (float[N] y) {
        y = If (flag) <
            then_branch = g1 () => (float[N] a) { a = Neg (x) },
            else_branch = g2 () => (float[N] b) { b = Identity (x) }
        >
    }""")
    with encoder_in_line(model):
        assert kinds(model.graph) == ["If"]
