"""What each unit costs, measured in one batch, is what it costs when measured alone."""

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Context
from optc.core.errors import PassContractError, SampleError, UnsupportedError
from optc.rewrite import quant_sensitivity
from optc.rewrite.quant_drift import DriftMeter
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sensitivity import sensitivities
from optc.rewrite.quant_sites import find_sites
from optc.rewrite.quant_units import units_of
from optc.targets.evaluate import OrtEvaluator

K = 32
TEXT = f"""<ir_version: 11, opset_import: ["": 24]>
main (int64[b, s] ids, float[50, {K}] table, float[{K}, {K}] wa, float[{K}, {K}] wb,
float[{K}, 50] wc) => (float[b, s, 50] logits) {{
    h = Gather(table, ids)
    a = MatMul(h, wa)
    r = Relu(h)
    b2 = MatMul(r, wb)
    sum = Add(a, b2)
    t = Tanh(sum)
    logits = MatMul(t, wc)
}}"""
FLAT = f"""<ir_version: 11, opset_import: ["": 24]>
main (float[b, s, {K}] x, float[{K}, {K}] wa, float[{K}, {K}] wb) => (float[b, s, {K}] y) {{
    rows = Constant<value_ints = [-1, {K}]>()
    two = Reshape(x, rows)
    a = MatMul(two, wa)
    r = Relu(a)
    c = MatMul(r, wb)
    shape = Shape(x)
    y = Reshape(c, shape)
}}"""
SWAPPED = FLAT.replace("two = Reshape(x, rows)", "two = Transpose<perm = [1, 0, 2]>(x)").replace(
    "y = Reshape(c, shape)", "y = Transpose<perm = [1, 0, 2]>(c)"
)


def _model(text):
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    for value in [v for v in model.graph.inputs if v.name in {"table", "wa", "wb", "wc"}]:
        shape = [int(size) for size in value.shape]
        array = rng.normal(size=shape).astype(np.float32) / 4
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def _alone(model, units, plan, ctx, samples):
    meter = DriftMeter(model, ctx, samples, ctx.wants)
    found = {}
    for unit in units:
        names = {str(site.weight.name) for site in unit.sites}
        part = Plan(
            {name: grid for name, grid in plan.weights.items() if name in names},
            tokens=plan.tokens & {unit.name},
        )
        found[unit.name] = meter.measure(part)
    return found


@pytest.mark.parametrize("by_token", [False, True])
def test_one_batch_measures_what_many_runs_measure(by_token):
    model = _model(TEXT)
    ctx = Context(evaluate=OrtEvaluator())
    samples = [{"ids": np.random.default_rng(1).integers(0, 50, (1, 20))}]
    units = units_of(find_sites(model).sites)
    weights = {n: Grid(4, 16) for n in ("table", "wa", "wb", "wc")}
    tokens = frozenset(u.name for u in units if not u.is_lookup) if by_token else frozenset()
    plan = Plan(weights, tokens=tokens)
    found = sensitivities(model, units, plan, ctx, samples)
    expected = _alone(model, units, plan, ctx, samples)
    assert set(found) == {"table", "h", "r", "t"}
    assert found == pytest.approx(expected, rel=1e-2)


def test_tokens_of_all_copies_in_one_axis_are_told_apart():
    model = _model(FLAT)
    ctx = Context(evaluate=OrtEvaluator())
    samples = [{"x": np.random.default_rng(1).normal(size=(1, 9, K)).astype(np.float32)}]
    units = units_of(find_sites(model).sites)
    plan = Plan({"wa": Grid(4, 16), "wb": Grid(4, 16)})
    found = sensitivities(model, units, plan, ctx, samples)
    expected = _alone(model, units, plan, ctx, samples)
    assert found == pytest.approx(expected, rel=1e-2)


def test_copies_that_are_not_along_the_first_axis_are_not_measured():
    model = _model(SWAPPED)
    ctx = Context(evaluate=OrtEvaluator())
    samples = [{"x": np.random.default_rng(1).normal(size=(1, 9, K)).astype(np.float32)}]
    units = units_of(find_sites(model).sites)
    assert sensitivities(model, units, Plan({"wa": Grid(4, 16)}), ctx, samples) == {}


class Failing:
    """Runs one sample alone, and fails on batches."""

    def __init__(self, error):
        self.error = error

    def __call__(self, model, feeds, *, fetch=None):
        for sample in feeds:
            if len(next(iter(sample.values()))) > 1:
                raise self.error
            yield from OrtEvaluator()(model, [sample], fetch=fetch)


def _measured_with(evaluate):
    model = _model(FLAT)
    samples = [{"x": np.random.default_rng(1).normal(size=(1, 9, K)).astype(np.float32)}]
    units = units_of(find_sites(model).sites)
    plan = Plan({"wa": Grid(4, 16)})
    return sensitivities(model, units, plan, Context(evaluate=evaluate), samples)


@pytest.mark.parametrize("kind", [SampleError, UnsupportedError])
def test_where_a_batch_is_refused_nothing_is_measured(kind):
    assert _measured_with(Failing(kind("no batch"))) == {}


def test_a_failure_that_has_nothing_to_do_with_batches_is_one():
    with pytest.raises(PassContractError, match="no graph"):
        _measured_with(Failing(PassContractError("the trial is no graph")))


def _deep(layers):
    """A chain of products, a unit each, and the table."""
    weights = "".join(f", float[{K}, {K}] w{n}" for n in range(layers))
    lines = "".join(f"h{n + 1} = MatMul(h{n}, w{n})\n" for n in range(layers))
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
main (int64[b, s] ids, float[50, {K}] table{weights}, float[{K}, 50] head)
=> (float[b, s, 50] logits) {{ h0 = Gather(table, ids)
{lines} logits = MatMul(h{layers}, head) }}"""
    )
    rng = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        array = rng.normal(size=value.shape.numpy()).astype(np.float32) / np.float32(6)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


class Counting:
    """An evaluator that notes what it ran, and that nothing else was open meanwhile."""

    def __init__(self):
        self.graphs, self.shapes, self.open = [], [], 0

    def __call__(self, model, feeds, *, fetch=None):
        assert not self.open, "two graphs are open at once"
        self.open += 1
        self.graphs.append(model)
        feeds = list(feeds)
        self.shapes.append([sample["ids"].shape for sample in feeds])
        yield from OrtEvaluator()(model, feeds, fetch=fetch)
        self.open -= 1


def _counted(layers, samples):
    model, counting = _deep(layers), Counting()
    units = units_of(find_sites(model).sites)
    plan = Plan({str(s.weight.name): Grid(4, 16) for u in units for s in u.sites})
    found = sensitivities(model, units, plan, Context(evaluate=counting), samples)
    assert set(found) == {unit.name for unit in units}
    return model, counting


IDS = np.random.default_rng(1).integers(0, 50, (2, 1, 100))


def test_the_float_graph_is_run_once_whatever_the_number_of_units(monkeypatch):
    monkeypatch.setattr(quant_sensitivity, "_OUTPUT_BYTES", 4 * 50 * 64 * 5)
    model, counting = _counted(10, [{"ids": ids} for ids in IDS])
    assert [graph is model for graph in counting.graphs] == [True, False]
    assert counting.shapes == [[(1, 20), (1, 20), (2, 20)], [(13, 20), (13, 20)]]


@pytest.mark.parametrize("room", [4 * 50 * 8 * 16, 4 * 50 * 32 * 16])
def test_of_a_large_vocabulary_fewer_tokens_are_taken_and_not_fewer_units(monkeypatch, room):
    monkeypatch.setattr(quant_sensitivity, "_OUTPUT_BYTES", room)
    _, counting = _counted(28, [{"ids": IDS[0]}])
    _, *trials = counting.shapes
    assert [copies for ((copies, _),) in trials] == [16, 16]
    assert {16 * tokens * 50 * 4 for ((_, tokens),) in trials} == {room}
