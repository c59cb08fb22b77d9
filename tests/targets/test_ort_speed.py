"""Quantised products are found, counted, and timed beside float on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.errors import UnsupportedError
from optc.rewrite.quant_apply import apply_plan
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites
from optc.targets.ort import Ort
from optc.targets.ort_speed import Stopwatch, in_turn
from optc.targets.speed import Instead, Kind, Timing
from optc.targets.speed_kinds import cut, find_kinds, float_graph, quantised_graph

FOUR = Grid(4, 32, symmetric=False)
E4M3 = Grid(8, is_float=True)
WAYS = [
    (Grid(8), "tensor"),
    (Grid(8), "token"),
    (FOUR, ""),
    (Grid(4, 128), ""),
    (Grid(8, 32), ""),
    (E4M3, "tensor"),
    (E4M3, ""),
]
DECODER = """<ir_version: 11, opset_import: ["": 24]>
decoder (int64[b, s] ids, float[40, 64] table, float[64, 64] q, float[64, 32] k, float[64, 32] v,
         float[128, 64] down) => (float[b, s, 40] logits) {
    x = Gather(table, ids)
    a = MatMul(x, q)
    b1 = MatMul(x, k)
    b2 = MatMul(x, v)
    joined = Concat<axis = -1>(b1, b2)
    both = Add(a, joined)
    wide = Concat<axis = -1>(both, a)
    y = MatMul(wide, down)
    flipped = Transpose<perm = [1, 0]>(table)
    logits = MatMul(y, flipped)
}"""


def named(way: tuple[Grid, str]) -> str:
    return f"{way[0].dtype.name} {way[0].group} {way[1]}".strip()


def decoder(grid: Grid, rounding: str, rng: np.random.Generator) -> ir.Model:
    """One layer on a tied table: three products of one activation, one alone, and the table's."""
    model = ir.from_onnx_text(DECODER)
    for value in list(model.graph.inputs)[1:]:
        array = rng.standard_normal(value.shape.numpy()).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    sites = find_sites(model).sites
    weights = {str(s.weight.name): Grid(8, 32) if s.weight.name == "table" else grid for s in sites}
    names = ("x", "wide")
    ranges = {name: Fit(4.0, is_float=grid.is_float) for name in names}
    tokens = frozenset(names if rounding == "token" else ())
    apply_plan(model, sites, Plan(weights, ranges if rounding == "tensor" else {}, tokens))
    return model


@pytest.mark.parametrize("way", WAYS, ids=named)
def test_products_are_counted_by_what_they_are_and_a_tied_table_once(way, rng) -> None:
    grid, rounding = way
    assert find_kinds(decoder(grid, rounding, rng)) == Counter(
        {
            Kind(64, (64, 32, 32), grid, rounding): 1,
            Kind(128, (64,), grid, rounding): 1,
            Kind(64, (40,), Grid(8, 32), is_tied=True): 1,
        }
    )


def test_products_in_float_are_none_of_them(rng) -> None:
    assert not find_kinds(float_graph(Kind(64, (32,), FOUR)))


@pytest.mark.parametrize("is_tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_a_small_graph_holds_nothing_but_its_kind(way, dtype, is_tied) -> None:
    kind = Kind(64, (48,) if is_tied else (48, 32), *way, is_tied=is_tied, dtype=dtype)
    assert find_kinds(quantised_graph(kind)) == Counter({kind: 1})


def test_a_small_graph_is_lowered_as_the_whole_is() -> None:
    def ops(kind: Kind) -> list[str]:
        return [node.op_type for node in Ort().lower(quantised_graph(kind)).graph]

    assert ops(Kind(64, (48, 32), FOUR)) == ["MatMulNBits", "Split"]
    assert ops(Kind(64, (48,), Grid(8), "tensor")) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert "GatherBlockQuantized" in ops(Kind(64, (48,), Grid(8, 32), is_tied=True))


def test_large_weights_are_cut_to_fewer_channels_each_but_not_to_few() -> None:
    kind = Kind(64, (3000, 300), FOUR)
    assert cut(kind, kind.elements) is kind
    assert cut(kind, 64 * 330).outers == (300, 30)
    assert sum(cut(kind, 1).outers) == pytest.approx(256, abs=1)


SQUARE = Kind(256, (256,), FOUR)


class Clumsy(Ort):
    """Does each product with a 4-bit weight thirty times, one after the other."""

    def lower(self, model: ir.Model) -> ir.Model:
        lowered = super().lower(model)
        for node in [node for node in lowered.graph if node.op_type == "MatMulNBits"]:
            last = node
            for number in range(30):
                inputs = [last.outputs[0], *node.inputs[1:]]
                again = ir.Node(node.domain, node.op_type, inputs, node.attributes.values())
                again.name = again.outputs[0].name = f"again_{number}"
                lowered.graph.insert_after(last, again)
                last = again
            last.outputs[0].type = node.outputs[0].type
            lowered.graph.outputs[0] = last.outputs[0]
        return lowered


def test_a_lowering_that_is_slow_is_called_so() -> None:
    (speed,) = Clumsy().speed(quantised_graph(SQUARE))
    assert speed.kind == SQUARE
    assert speed.count == speed.products == 1
    assert 128 in speed.slower
    assert speed.timings[-1].ratio > 3


def test_what_the_runtime_refuses_is_not_timed() -> None:
    def refuses(model: ir.Model) -> ir.Model:
        raise UnsupportedError("no")

    assert Stopwatch(refuses).speeds(quantised_graph(SQUARE)) == ()


def test_products_that_take_no_time_are_not_timed() -> None:
    stopwatch = Stopwatch(Ort().lower, timer=lambda *_: pytest.fail("it was timed"))
    assert stopwatch.speeds(quantised_graph(Kind(64, (64,), FOUR))) == ()


def test_runs_shorter_than_20_us_are_not_compared() -> None:
    assert in_turn(lambda: 19e-6, lambda: 1.0, 0.0) == []
    assert in_turn(lambda: 21e-6, lambda: 1.0, 0.0) == [(21e-6, 1.0)] * 12


def test_each_is_first_every_other_time() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return 1.0

    in_turn(lambda: run("plain"), lambda: run("quantised"), 0.0)
    assert order[-4:] == ["plain", "quantised", "quantised", "plain"]


Ratios = Mapping[Grid, Sequence[float]]


def told(ratios: Ratios, **options: Any) -> Stopwatch:
    """A stopwatch that is told the ratios for one token and for 128, by grid."""

    def timer(kind: Kind, seconds: float) -> tuple[Timing, ...]:
        found = zip((1, 128), ratios[kind.grid], strict=True)
        return tuple(Timing(tokens, ratio, float(ratio > 1)) for tokens, ratio in found)

    return Stopwatch(Ort().lower, timer=timer, **options)


def test_the_first_scheme_that_is_faster_where_it_matters_is_named() -> None:
    ratios = {FOUR: (0.4, 1.3), Grid(8): (0.5, 0.4), Grid(8, 32): (0.4, 0.5)}
    (speed,) = told(ratios).speeds(quantised_graph(SQUARE))
    assert speed.slower == (128,)
    assert speed.instead == Instead("int8-dynamic", 0.4)


def test_a_scheme_that_is_not_faster_there_is_not_named() -> None:
    ratios = {FOUR: (0.4, 1.3), Grid(8): (0.5, 1.0), Grid(8, 32): (0.5, 0.8)}
    (speed,) = told(ratios).speeds(quantised_graph(SQUARE))
    assert speed.instead == Instead("w8", 0.8)
    ratios[Grid(8, 32)] = (0.5, 1.2)
    (speed,) = told(ratios).speeds(quantised_graph(SQUARE))
    assert speed.instead is None


def test_schemes_are_tried_for_the_first_of_a_form_only(rng) -> None:
    ratios = {FOUR: (0.4, 1.3), Grid(8, 32): (0.4, 1.3), Grid(8): (0.5, 0.5)}
    speeds = told(ratios, fewest=0).speeds(decoder(FOUR, "", rng))
    forms = [(s.kind.form, s.kind.inner, s.kind.is_tied, bool(s.instead)) for s in speeds]
    assert forms == [
        ("int4 in groups of 32", 64, False, True),
        ("int4 in groups of 32", 128, False, False),
        ("int8 in groups of 32", 64, True, True),
    ]


def test_nothing_is_tried_where_nothing_is_slower() -> None:
    ratios = {FOUR: (0.4, 1.05)}  # and of other grids nothing is known
    (speed,) = told(ratios).speeds(quantised_graph(SQUARE))
    assert speed.instead is None


def test_kinds_that_most_weights_belong_to_come_first_and_time_ends(rng) -> None:
    ratios = {FOUR: (0.4, 0.5), Grid(8, 32): (0.4, 0.5)}
    model = decoder(FOUR, "", rng)
    assert [s.kind.inner for s in told(ratios, fewest=0).speeds(model)] == [64, 128, 64]
    assert told(ratios, fewest=0, seconds=0.0).speeds(model) == ()


def test_only_a_part_of_a_large_weight_is_timed() -> None:
    elements: set[int] = set()

    def lower(model: ir.Model) -> ir.Model:
        tensors = [value.const_value for value in model.graph.initializers.values()]
        elements.add(max(tensor.size for tensor in tensors if tensor is not None))
        return Ort().lower(model)

    kind = Kind(1024, (8192,), FOUR)
    speed = Stopwatch(lower).speeds(quantised_graph(kind))[0]
    assert speed.kind == kind
    assert [timing.tokens for timing in speed.timings] == [1, 128]
    assert elements == {2**20}
