from __future__ import annotations

import onnx_ir as ir
import pytest

from optc.core.base import Pass, PassResult
from optc.core.context import Context
from optc.core.errors import ModelFileError, PassContractError
from optc.core.pipeline import Pipeline
from optc.ir.flash_attention import AttentionSpec, add_flash_attention
from optc.ir.verify import VerifyHook, problems, verify_model

HEAD = '<ir_version: 11, opset_import: ["": 24]>\n'


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text(
        HEAD
        + """g (bool c, float[n] x) => (float[n] y) <float[1] w = {2.0}> {
            [scale] s = Mul(x, w)
            [choose] z = If (c) <then_branch = t () => (float[n] a) { [t0] a = Neg(s) },
                                 else_branch = e () => (float[n] a) { [t0] a = Abs(s) }>
            [last] y = Relu(z)
        }"""
    )


def test_a_good_graph_has_no_problems(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString()
    verify_model(model)
    assert list(problems(model)) == []
    assert ir.to_proto(model).SerializeToString() == before


def branch(model: ir.Model) -> ir.Graph:
    return model.graph.node("choose").attributes["then_branch"].as_graph()


def test_case_1_a_value_name_used_twice(model: ir.Model) -> None:
    model.graph.node("scale").outputs[0].name = "y"
    assert list(problems(model)) == ["two values are named 'y'"]


def test_case_1_a_subgraph_may_not_hide_an_outer_value(model: ir.Model) -> None:
    branch(model).node("t0").outputs[0].name = "s"
    assert list(problems(model)) == ["two values are named 's'"]


def test_case_1_a_node_name_used_twice(model: ir.Model) -> None:
    model.graph.node("last").name = "scale"
    assert list(problems(model)) == ["two nodes are named 'scale'"]


def test_case_2_a_node_before_what_it_reads(model: ir.Model) -> None:
    first, last = model.graph.node("scale"), model.graph.node("last")
    model.graph.remove(first)
    model.graph.insert_after(last, first)
    found = list(problems(model))
    assert found[0] == "the Neg node 't0' reads 's', which nothing before it produces"
    assert len(found) == 2


def test_case_2_a_node_that_reads_a_value_of_a_removed_node(model: ir.Model) -> None:
    stray = ir.node("Exp", [model.graph.inputs[1]], name="stray").outputs[0]
    stray.name = "stray"
    model.graph.node("last").replace_input_with(0, stray)
    (found,) = problems(model)
    assert found == "the Relu node 'last' reads 'stray', which nothing before it produces"


def test_case_2_a_subgraph_value_is_not_visible_outside(model: ir.Model) -> None:
    inner = branch(model).node("t0").outputs[0]
    model.graph.node("last").replace_input_with(0, inner)
    assert "reads 'a', which nothing before it produces" in next(problems(model))


def test_case_3_an_initializer_without_data(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = None
    assert list(problems(model)) == ["the initializer 'w' has no data"]


def test_case_4_outputs_that_are_missing_doubled_or_untyped(model: ir.Model) -> None:
    outputs = model.graph.outputs
    outputs.append(outputs[0])
    outputs.append(ir.Value(name="lost", type=ir.TensorType(ir.DataType.FLOAT)))
    outputs.append(model.graph.node("scale").outputs[0])
    assert list(problems(model)) == [
        "the output 'lost' is produced by nothing",
        "'y' is an output twice",
        "the output 's' has no element type",
    ]


def test_case_5_a_domain_that_is_not_imported(model: ir.Model) -> None:
    model.graph.append(ir.node("Gelu", [model.graph.inputs[1]], domain="acme", name="gelu"))
    assert list(problems(model)) == [
        "the acme::Gelu node 'gelu' is of the domain 'acme', which is not imported"
    ]


def test_case_5_an_attention_node_whose_function_is_gone() -> None:
    model = ir.from_onnx_text(
        HEAD + "g (float[1,2,n,8] q) => (float[1,2,n,8] y) { [end] y = Identity(q) }"
    )
    query = model.graph.inputs[0]
    inputs = {"query": query, "key": query, "value": query}
    node = add_flash_attention(model, AttentionSpec(1.0, causal=True), inputs, name="attention")
    model.graph.insert_before(model.graph.node("end"), node)
    verify_model(model)
    model.functions.popitem()
    other = AttentionSpec(1.0, causal=True, window=4)
    add_flash_attention(model, other, inputs, name="unused")
    assert list(problems(model)) == [
        "the optc::FlashAttention node 'attention' calls a function with overload 'causal' that "
        "the model does not have"
    ]


def test_case_5_a_function_body_is_checked_too() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24, "own": 1]>
        g (float[n] x) => (float[n] y) { y = own.Twice(x) }
        <domain: "own", opset_import: ["": 24]>
        Twice (v) => (w) { [inner] w = Add(v, v) }"""
    )
    (function,) = model.functions.values()
    function.append(ir.node("Gelu", [function.inputs[0]], domain="acme", name="gelu"))
    assert list(problems(model)) == [
        "function own::Twice: the acme::Gelu node 'gelu' is of the domain 'acme', "
        "which is not imported"
    ]


def test_case_6_what_only_the_checker_knows(model: ir.Model) -> None:
    model.graph.node("last").attributes["volume"] = ir.AttrInt64("volume", 11)
    assert list(problems(model)) == []
    with pytest.raises(PassContractError, match="checker says: Unrecognized attribute: volume"):
        verify_model(model)


def test_case_6_weights_are_neither_read_nor_needed(model: ir.Model) -> None:
    def never() -> ir.Tensor:
        raise AssertionError("the weight was read")

    lazy = ir.LazyTensor(never, ir.DataType.FLOAT, ir.Shape([1 << 20, 1 << 20]), name="big")
    model.graph.register_initializer(ir.Value(name="big", const_value=lazy))
    gone = ir.ExternalTensor(
        "nowhere.data", 0, 4, ir.DataType.FLOAT, shape=ir.Shape([1]), name="gone"
    )
    branch(model).register_initializer(ir.Value(name="gone", const_value=gone))
    verify_model(model)


def test_the_message_counts_the_other_problems(model: ir.Model) -> None:
    model.graph.node("last").name = "scale"
    model.graph.initializers["w"].const_value = None
    with pytest.raises(PassContractError, match=r"has no data \(and 1 more problems\)"):
        verify_model(model)


class Vandal(Pass):
    name = "vandal"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        model.graph.node("last").name = "scale"
        return PassResult(sites=("last",))


def test_the_hook_names_the_pass(model: ir.Model) -> None:
    with pytest.raises(PassContractError) as caught:
        Pipeline((Vandal(),)).run(model, Context(), [VerifyHook()])
    assert str(caught.value) == "pass 'vandal': two nodes are named 'scale'"


def test_a_graph_that_came_in_broken_is_not_blamed_on_a_pass(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = None
    with pytest.raises(ModelFileError, match="the model is not well-formed: the initializer 'w'"):
        Pipeline((Vandal(),)).run(model, Context(), [VerifyHook()])
