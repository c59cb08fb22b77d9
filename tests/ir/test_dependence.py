"""Which inputs' contents a value depends on: sizes do not count, branches do."""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.dependence import inputs_read

TEXT = """<ir_version: 11, opset_import: ["": 24]>
any (float[N] x, float[N] y, bool flag) => (float[N] both, float[N] chosen, float[N] ones) {
    both = Add (x, y)
    count = Shape (both)
    ones = ConstantOfShape <value = float[1] {1.0}> (count)
    chosen = If (flag) <
        then_branch = g1 () => (float[N] a) { a = Neg (y) },
        else_branch = g2 () => (float[N] b) { b = Identity (ones) }
    >
}"""


def test_every_value_knows_the_inputs_it_is_computed_from() -> None:
    model = ir.from_onnx_text(TEXT)
    reads = inputs_read(model)
    found = {v.name: {i.name for i in reads.get(v, ())} for v in model.graph.outputs}
    assert found == {"both": {"x", "y"}, "chosen": {"y", "flag"}, "ones": set()}


def test_weights_are_no_inputs() -> None:
    model = ir.from_onnx_text(TEXT)
    weight = model.graph.inputs[0]
    weight.const_value = ir.tensor([1.0], name="x")
    model.graph.register_initializer(weight)
    assert {i.name for i in inputs_read(model)[model.graph.outputs[0]]} == {"y"}
