"""A walk gives at each place what the whole graph gives there."""

import numpy as np
import onnx_ir as ir
import pytest

from optc.rewrite.quant_walk import Walk
from optc.targets.evaluate import OrtEvaluator

TEXT = """<ir_version: 11, opset_import: ["": 24]>
main (float[n, 4] x, float[n, 4] beside) => (float[n, 4] y, float[n, 4] other) {
    a = Relu(x)
    b = Neg(a)
    c = Add(b, beside)
    other = Abs(c)
    d = Mul(c, a)
    y = Tanh(d)
}"""
RNG = np.random.default_rng(0)
SAMPLES = [{n: RNG.normal(size=(k, 4)).astype(np.float32) for n in ("x", "beside")} for k in (2, 5)]


def _model():
    return ir.from_onnx_text(TEXT)


def _node(model, output):
    return next(node for node in model.graph if node.outputs[0].name == output)


def _whole(model, name):
    return [got[name] for got in OrtEvaluator()(model, SAMPLES, fetch=[name])]


class Counting:
    """An evaluator that says which nodes it was given."""

    def __init__(self):
        self.ran = []

    def __call__(self, model, feeds, *, fetch=None):
        self.ran += [node.outputs[0].name for node in model.graph]
        return OrtEvaluator()(model, feeds, fetch=fetch)


def test_every_stop_sees_what_the_whole_graph_computes():
    model = _model()
    walk = Walk(model, OrtEvaluator(), SAMPLES)
    for before, name in (("b", "a"), ("d", "c"), ("y", "d")):
        found = list(walk.advance(_node(model, before), name))
        for got, want in zip(found, _whole(model, name), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_no_node_runs_twice_and_none_that_is_not_needed():
    model, runs = _model(), Counting()
    walk = Walk(model, runs, SAMPLES)
    for before, name in (("b", "a"), ("c", "b"), ("y", "d")):
        list(walk.advance(_node(model, before), name))
    assert sorted(runs.ran) == ["a", "b", "c", "d"]


def test_what_changes_further_on_is_seen():
    model = _model()
    walk = Walk(model, OrtEvaluator(), SAMPLES)
    (first, *_) = list(walk.advance(_node(model, "c"), "b"))
    _node(model, "c").replace_input_with(1, _node(model, "a").outputs[0])
    (second, *_) = list(walk.advance(_node(model, "d"), "c"))
    np.testing.assert_allclose(first, -np.maximum(SAMPLES[0]["x"], 0))
    np.testing.assert_allclose(second, np.zeros_like(first), atol=1e-7)


def test_a_known_value_may_be_divided():
    model = _model()
    walk = Walk(model, OrtEvaluator(), SAMPLES)
    list(walk.advance(_node(model, "d"), "c"))
    walk.divide("c", np.full(4, 2, np.float32))
    (found, _) = list(walk.advance(_node(model, "y"), "d"))
    np.testing.assert_allclose(found, _whole(model, "d")[0] / 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["x"])
def test_an_input_is_known_from_the_start(name):
    model = _model()
    walk = Walk(model, OrtEvaluator(), SAMPLES)
    (found, _) = list(walk.advance(_node(model, "a"), name))
    assert (found == SAMPLES[0][name]).all()
