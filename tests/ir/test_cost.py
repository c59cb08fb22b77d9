"""What an evaluation at many tokens needs is told from what it needs at few."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.cost import Cost
from optc.ir.probe import Probe, ProbeFailure


@pytest.mark.parametrize(
    ("elements", "last"),
    [
        ({"vector": lambda n: n}, 1 << 24),
        ({"matrix": lambda n: n * n}, 1 << 12),
        ({"table": lambda n: 64 * n}, 1 << 18),
        ({"constant": lambda n: 1 << 20, "matrix": lambda n: n * n}, 1 << 12),
    ],
    ids=["vector", "matrix", "wide", "overtaken"],
)
def test_2_to_the_24_elements_are_affordable_and_not_one_more(elements, last):
    cost = Cost(lambda count: {name: size(count) for name, size in elements.items()})
    assert cost.affords(last)
    assert not cost.affords(last + last // 16)


def test_what_does_not_grow_is_affordable_at_any_count():
    assert Cost(lambda count: {"scalar": 1}).affords(1 << 40)


def test_what_cannot_be_evaluated_at_few_tokens_is_not_tried_at_many():
    def measure(count: int) -> dict[str, int]:
        raise ProbeFailure("no")

    cost = Cost(measure)
    assert cost.affords(16)
    assert not cost.affords(17)


def test_a_probe_says_how_large_its_values_were(graph):
    model = graph("""<ir_version: 10, opset_import: ["": 23]>
agraph (int64[n] x) => (int64[n,n] y) {
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    size = Shape(x)
    count = Squeeze(size)
    places = Range(zero, count, one)
    ends = Constant<value_ints = [1]>()
    column = Unsqueeze(places, ends)
    y = Sub(places, column)
}""")
    probe = Probe(model, {"n": 5})
    matrix = next(node for node in model.graph if node.op_type == "Sub").outputs[0]
    places = np.arange(5)
    np.testing.assert_array_equal(probe.run(matrix), places - places[:, None])
    assert (probe.elements["y"], probe.elements["places"]) == (25, 5)
