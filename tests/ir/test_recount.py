"""Values that depend on sizes only, copied for another number of tokens; drafts leave no trace."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optc.ir.draft import Draft
from optc.ir.probe import Probe, ProbeFailure
from optc.ir.recount import Recount, TokenAxes

AXES = TokenAxes("b", "s")
TEXT = """<ir_version: 10, opset_import: ["": 18]>
agraph (int64[b,s] input_ids, float[other,4] more) => (int64[b,s] y) {
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    sizes = Shape(input_ids)
    size = Shape<start = 1, end = 2>(input_ids)
    count = Squeeze(size)
    range = Range(zero, count, one)
    table = Expand(range, sizes)
    foreign = Shape<start = 0, end = 1>(more)
    y = Add(table, input_ids)
}"""


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for node in model.graph for v in node.outputs if v.name == name)


def test_a_copy_is_for_one_row_of_that_many_tokens(model):
    count = ir.val("count", ir.DataType.INT64, [1])
    copy = Recount(Draft(model, "new"), AXES, count).copy(value(model, "table"))
    got = Probe(model, {}).run(copy, {count: np.array([5])})
    assert got.tolist() == [[0, 1, 2, 3, 4]]


def test_values_can_be_given(model):
    count, given = (ir.val(name, ir.DataType.INT64, [None]) for name in ("count", "given"))
    recount = Recount(Draft(model, "new"), AXES, count, {value(model, "range"): given})
    copy = recount.copy(value(model, "table"))
    got = Probe(model, {}).run(copy, {count: np.array([2]), given: np.array([7, 9])})
    assert got.tolist() == [[7, 9]]


@pytest.mark.parametrize(("name", "why"), [("y", "the data in"), ("foreign", "the size of 'more'")])
def test_what_depends_on_more_is_refused(name, why, model):
    recount = Recount(Draft(model, "new"), AXES, ir.val("count", ir.DataType.INT64, [1]))
    with pytest.raises(ProbeFailure, match=why):
        recount.copy(value(model, name))


def test_a_draft_changes_nothing_until_it_is_kept(model):
    before = [node.name for node in model.graph]
    draft, range_ = Draft(model, "new"), value(model, "range")
    uses = len(range_.uses())
    draft.node("Neg", [range_])
    assert [node.name for node in model.graph] == before
    draft.discard()
    assert len(range_.uses()) == uses
    made = draft.node("Neg", [range_])
    draft.keep()
    assert model.graph[0] is made.producer()


@pytest.mark.parametrize(
    ("size", "counts"),
    [("s", True), ("Min(64, s)", True), ("b", False), ("2*s", False), (7, False), (None, False)],
)
def test_sizes_that_are_the_number_of_tokens(size, counts):
    (dim,) = ir.Shape([size])
    assert AXES.is_count(dim) == counts
