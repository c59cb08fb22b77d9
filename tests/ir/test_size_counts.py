"""Counts to try: few tokens, many, and what is near the numbers in a graph."""

from __future__ import annotations

import pytest

from optc.ir.probe import fixed_values
from optc.ir.size_counts import ENDLESS, counts_to_try, numbers_met


def compared(graph, number: str, body: str = "y = Less(count, number)"):
    return graph(f"""<ir_version: 10, opset_import: ["": 24]>
    agraph (float[b,s] x) => (bool[1] y) {{
        count = Shape<start = 1, end = 2>(x)
        number = Constant<value_ints = [{number}]>()
        {body}
    }}""")


def counts(model, limit: int = ENDLESS) -> list[int]:
    return counts_to_try(model, model.graph.outputs[0], fixed_values(model), limit)


def test_one_token_and_many_are_always_tried(graph):
    found = counts(compared(graph, "1"))
    assert found == sorted(found)
    assert {1, 2, 3, 32, 131072} <= set(found)


@pytest.mark.parametrize("number", [5, 200, 1_000_000])
def test_a_number_and_its_neighbours(number, graph):
    assert {number - 1, number, number + 1} <= set(counts(compared(graph, str(number))))


def test_products_and_sums_of_numbers(graph):
    body = "size = Constant<value_ints = [19]>()\nblocks = Div(count, size)\n"
    found = counts(compared(graph, "17", body + "y = Equal(blocks, number)"))
    assert {17 * 19, 17 + 19, 2 * 19} <= set(found)


def test_the_limit_is_tried_and_no_end_is_not(graph):
    assert 77 in counts(compared(graph, "5"), limit=77)
    assert max(counts(compared(graph, "9223372036854775807"))) < ENDLESS


def test_a_number_that_meets_no_size_is_none(graph):
    body = "other = Constant<value_ints = [300]>()\nno = Less(number, other)\n"
    body += "two = Constant<value_ints = [200]>()\nover = Less(two, count)\ny = And(over, no)"
    model = compared(graph, "100", body)
    assert numbers_met(model, model.graph.outputs[0], fixed_values(model)) == [200]
