"""Masks are read by evaluating them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from optc.ir.bands import visible_band, visible_part
from optc.ir.masks import MaskMeaning, read_mask


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


def test_almost_causal_is_handed_over(graph):
    assert meaning(mask_model(graph, "m = Less(j, i)")).residual


def test_a_window_that_hides_only_what_is_too_old(graph):
    """One half of a window that is written as two masks."""
    body = "width = Constant<value_int = 5>()\nfirst = Sub(i, width)\nm = Greater(j, first)"
    assert meaning(mask_model(graph, body)) == MaskMeaning(causal=False, window=5)


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


PADDINGS = {
    "kept": "m = And(causal, kept4)",
    "additive": """
        nothing = Constant<value_float = 0.0>()
        hidden = Constant<value_float = -inf>()
        both = And(causal, kept4)
        bias = Where(both, nothing, hidden)
        m = Equal(bias, nothing)
    """,
}


def padded(graph, body: str, kind: str = "int64") -> MaskMeaning:
    extra = f", {kind}[b,s] kept"
    before = """
        causal = LessOrEqual(j, i)
        axes = Constant<value_ints = [1, 2]>()
        kept_bool = Cast<to = 9>(kept)
        kept4 = Unsqueeze(kept_bool, axes)
    """
    model = mask_model(graph, before + body, extra)
    found = meaning(model)
    return dataclasses.replace(found, padding=found.padding and found.padding.name)


@pytest.mark.parametrize("kind", ["int64", "bool"])
@pytest.mark.parametrize("body", PADDINGS.values(), ids=PADDINGS)
def test_padding_is_told_from_causality(body, kind, graph):
    assert padded(graph, body, kind) == MaskMeaning(causal=True, padding="kept")


def test_padding_alone(graph):
    assert padded(graph, "m = And(kept4, kept4)") == MaskMeaning(padding="kept")


@pytest.mark.parametrize(
    "body", ["m = Not(kept4)", "m = Or(causal, kept4)", "m = Xor(causal, kept4)"]
)
def test_an_input_that_does_something_else_is_handed_over(body, graph):
    found = padded(graph, body)
    assert found.residual
    assert "kept" in found.why


def test_a_gate_is_read_by_its_zeros(graph):
    model = mask_model(graph, "c = LessOrEqual(j, i)\ng = Cast<to = 1>(c)\nm = Cast<to = 9>(g)")
    (gate,) = [v for n in model.graph for v in n.outputs if n.op_type == "Cast"][:1]
    assert read_mask(model, gate, "s", "s", gate=True) == MaskMeaning(causal=True)
    assert read_mask(model, gate, "s", "s").residual


def test_a_mask_that_is_subtracted(graph):
    body = """
        later = Greater(j, i)
        number = Cast<to = 1>(later)
        much = Constant<value_float = 10000.0>()
        hidden = Mul(number, much)
        m = Cast<to = 9>(hidden)
    """
    model = mask_model(graph, body)
    (hidden,) = [v for n in model.graph for v in n.outputs if n.op_type == "Mul"]
    assert read_mask(model, hidden, "s", "s", factor=-1.0) == MaskMeaning(causal=True)
    assert read_mask(model, hidden, "s", "s").residual


def test_more_keys_than_queries_are_aligned_at_the_end(graph):
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,8] x, float[b,p,8] old) => (bool[s,t] m) {
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        new_1d = Shape<start = 1, end = 2>(x)
        old_1d = Shape<start = 1, end = 2>(old)
        new = Squeeze(new_1d)
        past = Squeeze(old_1d)
        total = Add(new, past)
        j = Range(zero, total, one)
        i0 = Range(past, total, one)
        axis = Constant<value_ints = [1]>()
        i = Unsqueeze(i0, axis)
        m = LessOrEqual(j, i)
    }""")
    mask = model.graph.outputs[0]
    assert read_mask(model, mask, "s", "p + s") == MaskMeaning(causal=True)


@pytest.mark.parametrize(
    "condition",
    [
        "limit = Constant<value_int = 6>()\nodd = Equal(count, limit)",
        "limit = Constant<value_int = 2>()\nodd = LessOrEqual(count, limit)",
        "limit = Constant<value_int = 20>()\nodd = Equal(count, limit)",
        "rows = Shape<start = 0, end = 1>(x)\nodd = Equal(rows, axis)",
        "rows = Shape<start = 0, end = 1>(x)\nlimit = Constant<value_ints = [9]>()\n"
        "odd = Greater(rows, limit)",
    ],
    ids=["6 tokens", "2 or less", "20 tokens", "1 row", "over 9 rows"],
)
def test_what_is_another_at_a_small_size_is_handed_over(condition, graph):
    """Elsewhere each token sees itself only, and at that size the one before too."""
    body = f"""
        {condition}
        before = Sub(i, one)
        same = Equal(j, i)
        last = Equal(j, before)
        also = And(last, odd)
        m = Or(same, also)
    """
    assert meaning(mask_model(graph, body)).residual
    never = body.replace("m = Or(same, also)", "m = Identity(same)")
    assert meaning(mask_model(graph, never)) == MaskMeaning(causal=True, window=1)
