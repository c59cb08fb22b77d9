"""A walk gives at each place what the whole graph gives there."""

import sys

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


BRANCHES = """<ir_version: 11, opset_import: ["": 24]>
main (bool[1] way, float[n, 4] x) => (float[n, 4] y) {
    a = Relu(x)
    b = Neg(a)
    c = If(way) <
        then_branch = t () => (float[n, 4] p) { p0 = Abs(a) p = Neg(p0) },
        else_branch = e () => (float[n, 4] q) {
            q = If(way) <then_branch = t2 () => (float[n, 4] p2) { p2 = Exp(a) },
                         else_branch = e2 () => (float[n, 4] q2) { q2 = Sub(a, x) }> }>
    d = Mul(c, b)
    y = Tanh(d)
}"""


@pytest.mark.parametrize("way", [False, True])
def test_what_only_branches_read_is_kept_for_them(way):
    model = ir.from_onnx_text(BRANCHES)
    samples = [{"way": np.array([way]), "x": SAMPLES[0]["x"]}]
    walk = Walk(model, OrtEvaluator(), samples)
    for before, name in (("b", "a"), ("c", "b"), ("y", "d")):
        (found,) = walk.advance(_node(model, before), name)
        (want,) = OrtEvaluator()(model, samples, fetch=[name])
        np.testing.assert_allclose(found, want[name], rtol=1e-6)


def test_a_node_put_before_the_place_is_run_with_what_comes_next():
    model = _model()
    walk = Walk(model, OrtEvaluator(), SAMPLES)
    list(walk.advance(_node(model, "c"), "b"))
    c = _node(model, "c")
    twice = ir.node("Add", [c.inputs[0], c.inputs[0]])
    twice.outputs[0].name = "twice"
    model.graph.insert_before(c, twice)
    c.replace_input_with(0, twice.outputs[0])
    (found, _) = walk.advance(_node(model, "d"), "c")
    x, beside = SAMPLES[0]["x"], SAMPLES[0]["beside"]
    np.testing.assert_allclose(found, beside - 2 * np.maximum(x, 0), rtol=1e-6)


def test_nothing_happens_before_a_value_is_taken():
    model, runs = _model(), Counting()
    advance = Walk(model, runs, SAMPLES).advance(_node(model, "d"), "c")
    assert runs.ran == []
    next(advance)
    assert runs.ran == ["a", "b", "c"]


def test_what_is_read_no_more_is_forgotten():
    model = _model()
    walk = Walk(model, OrtEvaluator(), SAMPLES)
    kept = []
    for before, name in (("b", "a"), ("c", "b"), ("d", "c"), ("y", "d")):
        list(walk.advance(_node(model, before), name))
        kept.append(sorted(walk._known[0]))
    assert kept == [["a", "beside"], ["a", "b", "beside"], ["a", "c"], ["d"]]


def _layers(count):
    """Layers that all read one mask, an input of their own, and the layer before."""
    pasts = "".join(f", float[n, 4] past{n}" for n in range(count))
    lines = "".join(
        f"a{n} = Add(h{n}, mask) b{n} = Mul(a{n}, past{n}) h{n + 1} = Add(b{n}, h{n})\n"
        for n in range(count)
    )
    return ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        main (float[n, 4] h0, float[n, 4] x{pasts}) => (float[n, 4] h{count}) {{
        mask = Neg(x)
        {lines} }}"""
    )


def _calls(count):
    """How many functions are called on the way through so many layers."""
    model, calls = _layers(count), 0
    zeros = np.zeros((2, 4), np.float32)

    def nothing(model, feeds, *, fetch=None):
        yield from (dict.fromkeys(fetch, zeros) for _ in feeds)

    def note(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    walk = Walk(model, nothing, [{str(value.name): zeros for value in model.graph.inputs}])
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    sys.setprofile(note)
    try:
        for layer in range(count):
            list(walk.advance(nodes[f"b{layer}"], f"a{layer}"))
    finally:
        sys.setprofile(None)
    return calls


def test_a_layer_costs_the_same_however_many_there_are():
    assert _calls(160) == pytest.approx(4 * _calls(40), rel=0.1)


def test_a_number_without_axes_goes_from_stage_to_stage():
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        main (float[n, 4] x, float[n, 4] beside) => (float[n, 4] y) {
            half = Constant<value_float = 0.5>()
            a = Mul(x, half)
            b = Add(a, beside)
            c = Mul(b, half)
            y = Abs(c)
        }"""
    )
    walk = Walk(model, OrtEvaluator(), SAMPLES)
    list(walk.advance(_node(model, "b"), "a"))
    (found, _) = walk.advance(_node(model, "y"), "c")
    np.testing.assert_allclose(found, _whole(model, "c")[0], rtol=1e-6)


LOOP = """<ir_version: 11, opset_import: ["": 24]>
main (float[n, 4] x, int64 times, bool on) => (float[n, 4] y) {
    a = Relu(x)
    b = Neg(a)
    c = Loop(times, on, b) <body = body (int64 i, bool go, float[n, 4] before)
        => (bool again, float[n, 4] after) {
            again = Identity(go)
            more = Add(before, a)
            after = Tanh(more) }>
    d = Mul(c, a)
    y = Tanh(d)
}"""


def test_what_a_loop_makes_and_takes_is_its_own():
    model = ir.from_onnx_text(LOOP)
    samples = [{"x": SAMPLES[0]["x"], "times": np.array(3), "on": np.array(True)}]
    walk = Walk(model, OrtEvaluator(), samples)
    for before, name in (("b", "a"), ("c", "b"), ("d", "c"), ("y", "d")):
        (found,) = walk.advance(_node(model, before), name)
        (want,) = OrtEvaluator()(model, samples, fetch=[name])
        np.testing.assert_allclose(found, want[name], rtol=1e-6)


CACHE = """<ir_version: 11, opset_import: ["": 24]>
main (int64[B, S] input_ids, int64[B] cache_lengths, int64[B] new_lengths,
      float[B, 2, 6, 4] past, int64[1] one)
    => (float[B, S] logits, float[B, 2, 6, 4] present) {
    ids = Cast<to = 1>(input_ids)
    a = Relu(ids)
    axes = Mul(one, one)
    wide = Unsqueeze(a, axes)
    first = Constant<value_ints = [0]>()
    b = ReduceSum<keepdims = 0>(wide, axes)
    present = Identity(past)
    sums = ReduceSum<keepdims = 0>(past)
    long = Add(cache_lengths, new_lengths)
    length = Cast<to = 1>(long)
    c = Add(length, sums)
    d = Neg(c)
    column = Unsqueeze(d, one)
    logits = Add(b, column)
}"""


def test_a_stage_that_takes_no_tokens_gets_caches_of_the_samples_batch():
    model = ir.from_onnx_text(CACHE)
    model.graph.inputs[3].name = "past_key_values.0.key"
    sizes = [(2, 5), (3, 4), (2, 7)]
    samples = [{"input_ids": np.ones(size, np.int64), "one": np.array([1])} for size in sizes]
    walk = Walk(model, OrtEvaluator(), samples)
    list(walk.advance(_node(model, "d"), "axes"))
    found = list(walk.advance(_node(model, "column"), "d"))
    for got, (rows, tokens) in zip(found, sizes, strict=True):
        np.testing.assert_array_equal(got, np.full(rows, -tokens, np.float32))


def test_empty_caches_are_there_once_for_each_batch():
    model = ir.from_onnx_text(CACHE)
    model.graph.inputs[3].name = "past_key_values.0.key"
    tokens = [np.ones(size, np.int64) for size in ((2, 5), (3, 4), (2, 7))]
    walk = Walk(model, OrtEvaluator(), [{"input_ids": array} for array in tokens])
    pasts = [known["past_key_values.0.key"] for known in walk._known]
    assert [len(past) for past in pasts] == [2, 3, 2]
    assert pasts[0] is pasts[2]
