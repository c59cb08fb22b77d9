"""Masks are read by evaluating them."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.masks import MaskMeaning, read_mask, visible_band, visible_part


def mask_model(graph, body: str, extra: str = ""):
    return graph(f"""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x{extra}) => (bool[s,s] m) {{
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        count_1d = Shape<start = 1, end = 2>(x)
        count = Squeeze(count_1d)
        j = Range(zero, count, one)
        axis = Constant<value_ints = [1]>()
        i = Unsqueeze(j, axis)
        {body}
    }}""")


def meaning(model) -> MaskMeaning:
    return read_mask(model, model.graph.outputs[0], "s", "s")


WINDOW = """
    causal = LessOrEqual(j, i)
    width = Constant<value_int = {width}>()
    first = Sub(i, width)
    near = Greater(j, first)
    m = And(causal, near)
"""


def test_causal(graph):
    assert meaning(mask_model(graph, "m = LessOrEqual(j, i)")) == MaskMeaning(causal=True)


@pytest.mark.parametrize("width", [1, 5, 700])
def test_a_window_of_any_width_is_seen(width, graph):
    found = meaning(mask_model(graph, WINDOW.format(width=width)))
    assert found == MaskMeaning(causal=True, window=width)


def test_everything_visible_is_no_mask(graph):
    assert meaning(mask_model(graph, "m = GreaterOrEqual(j, zero)\n")) == MaskMeaning()


@pytest.mark.parametrize("body", ["m = Less(j, i)", "m = GreaterOrEqual(j, i)"])
def test_almost_causal_is_handed_over(body, graph):
    assert meaning(mask_model(graph, body)).residual


def test_a_mask_over_an_input_is_handed_over(graph):
    model = mask_model(graph, "m = And(keep, keep)", ", bool[s,s] keep")
    found = meaning(model)
    assert found.residual
    assert "keep" in found.why


def test_the_band():
    assert visible_band(4, 2).astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, -10000.0])
def test_additive_masks(hidden):
    part = visible_part(np.array([0.0, hidden], np.float32))
    assert part.tolist() == [True, False]


def test_a_bias_is_no_mask():
    assert visible_part(np.array([0.0, -0.5], np.float32)) is None
