"""Tables of positions are found by what chooses among their rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tiny_generator import PLACES, tiny_language_model

from optc.targets.evaluate import open_model
from optc.targets.ort import Ort
from optc.targets.ort_limit import note_most_tokens, position_limit


def looked_up(indices: str, *, more: str = "") -> ir.Model:
    """Ten rows, chosen by `indices`, of the tokens' number S and the row's length."""
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        table (int64[B,S] input_ids, int64[B] cache_lengths{more}, float[10,2] rows)
            => (float[B,S,2] y) {{
            zero = Constant<value_int = 0>()
            one = Constant<value_int = 1>()
            two = Constant<value_int = 2>()
            nine = Constant<value_int = 9>()
            numbers = Constant<value_ints = [0, 1, 2, 3]>()
            axis = Constant<value_ints = [1]>()
            count_1d = Shape<start = 1, end = 2>(input_ids)
            count = Squeeze(count_1d)
            steps = Range(zero, count, one)
            first = Unsqueeze(cache_lengths, axis)
            positions = Add(first, steps)
            chosen = {indices}
            y = Gather(rows, chosen)
        }}"""
    )
    rows = next(value for value in model.graph.inputs if value.name == "rows")
    rows.const_value = ir.tensor(np.zeros((10, 2), np.float32), name="rows")
    model.graph.inputs.remove(rows)
    model.graph.register_initializer(rows)
    return model


@pytest.mark.parametrize(
    ("indices", "limit"),
    [
        ("Identity(positions)", 10),
        ("Add(positions, two)", 8),
        ("Min(positions, nine)", None),
        ("Div(positions, two)", None),
        ("Add(input_ids, positions)", None),
        ("Identity(input_ids)", None),
        ("Gather(numbers, positions)", None),
    ],
)
def test_a_limit_is_where_the_table_ends(indices: str, limit: int | None) -> None:
    assert position_limit(looked_up(indices)) == limit


def test_rows_counted_from_the_last_axis_are_rows() -> None:
    model = looked_up("Identity(positions)")
    model.graph[-1].attributes.add(ir.AttrInt64("axis", -2))
    assert position_limit(model) == 10


def test_another_input_among_the_positions_hides_the_limit() -> None:
    assert position_limit(looked_up("Add(positions, gaps)", more=", int64[B,1] gaps")) is None


@pytest.mark.parametrize(("cache", "limit"), [("", None), ("concat", PLACES)])
def test_a_session_tells_it(cache: str, limit: int | None) -> None:
    with open_model(Ort().lower(tiny_language_model(cache))) as session:
        assert session.most_tokens == limit


def test_what_a_model_came_with_is_not_believed() -> None:
    model = tiny_language_model("")
    model.metadata_props["optc.most_tokens"] = "1"
    note_most_tokens(model)
    assert model.metadata_props == {}
