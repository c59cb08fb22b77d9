"""Operations that combine tokens outside attention are found, the others are not.

What a graph does is known from running it: cut into rows and chunks of tokens, as a cache cuts it,
it gives the same or it does not.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from mixing_graphs import APART, MIXING, RANGE, graph_text

from optc.core.context import Context
from optc.ir.mixing import mixing_nodes
from optc.ir.probe import Probe
from optc.passes.flash import Flash

TOKENS = (0, 3, 4, 9)


def in_chunks(run, model, x) -> np.ndarray | None:
    """The results for each row and some tokens, put together; None where they do not fit."""
    rows = []
    for row in x[:, None]:
        cuts = list(itertools.pairwise(TOKENS))
        parts = [run(model, {"x": row[:, a:b]})["y"] for a, b in cuts]
        if [part.shape[1] for part in parts] != [b - a for a, b in cuts]:
            return None
        rows.append(np.concatenate(parts, 1))
    return np.concatenate(rows)


def is_same_in_chunks(run, model, rng) -> bool:
    x = rng.standard_normal((3, TOKENS[-1], 2)).astype(np.float32)
    whole, parts = run(model, {"x": x})["y"], in_chunks(run, model, x)
    return parts is not None and parts.shape == whole.shape and np.allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("name", MIXING)
def test_found(name, graph, run, rng):
    model = graph(graph_text(MIXING[name]))
    assert not is_same_in_chunks(run, model, rng)
    assert [m.node.op_type for m in mixing_nodes(model, "s")] == [name.split()[-1]]


@pytest.mark.parametrize("name", APART)
def test_left_alone(name, graph, run, rng):
    model = graph(graph_text(APART[name]))
    assert is_same_in_chunks(run, model, rng)
    assert mixing_nodes(model, "s") == []


IDS = {
    "Gather": "y0 = Gather(range, x)",
    "GatherElements": """
        rows = Shape<start = 0, end = 1>(x)
        sizes = Concat<axis = 0>(rows, size)
        table = Expand(range, sizes)
        y0 = GatherElements<axis = 1>(table, x)
    """,
    "GatherND": """
        end = Constant<value_ints = [2]>()
        at = Unsqueeze(x, end)
        y0 = GatherND(range, at)
    """,
}


@pytest.mark.parametrize("op", IDS)
def test_ids_that_choose_among_a_calls_own_positions_are_found(op, graph, run):
    model = graph(f"""<ir_version: 10, opset_import: ["": 24]>
    agraph (int64[b,s] x) => (int64[b,s] y) {{
        {RANGE}
        {IDS[op]}
        y = Neg(y0)
    }}""")
    ids = np.array([[0, 1, 2, 3]])
    assert run(model, {"x": ids})["y"].tolist() == [[0, -1, -2, -3]]
    with pytest.raises(Exception, match=r"ind(ex|ices)"):  # the last two alone do not fit
        run(model, {"x": ids[:, 2:]})
    (found,) = mixing_nodes(model, "s")
    assert found.node.op_type == op
    assert "a table that is as long as the call" in found.reason


def test_ids_choose_rows_of_a_constant(graph):
    model = graph("""<ir_version: 10, opset_import: ["": 24]>
    agraph (int64[b,s] x) => (float[b,s,2] y) {
        table = Constant<value = float[4,2] {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0}>()
        words = Gather(table, x)
        same = Add(x, x)
        even = Equal(same, x)
        end = Constant<value_ints = [2]>()
        flags = Unsqueeze(even, end)
        nothing = Constant<value_float = 0.0>()
        y = Where(flags, nothing, words)
    }""")
    assert mixing_nodes(model, "s") == []


def test_operators_with_a_rule_are_never_computed(graph, monkeypatch):
    def refuse(node, given, room):
        raise AssertionError(node.op_type)

    monkeypatch.setattr("optc.ir.mixing.tried", refuse)
    for name in (
        "flattened",
        "experts chosen by each token",
        "weights chosen by each token",
        "one-hot",
    ):
        assert mixing_nodes(graph(graph_text(APART[name])), "s") == []


def test_a_rotation_that_counts_by_itself_is_found(graph, run, rng):
    model = graph("""<ir_version: 10, opset_import: ["": 24, "com.microsoft": 1]>
    agraph (float[b,s,2] x) => (float[d0,d1,d2] y) {
        start = Constant<value_ints = [0]>()
        cos = Constant<value = float[16,1] {1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1,
                                            0.0, -0.1, -0.2, -0.3, -0.4, -0.5}>()
        one = Constant<value_ints = [1]>()
        heads = Unsqueeze(x, one)
        turned = com.microsoft.RotaryEmbedding(heads, start, cos, cos)
        y = Squeeze(turned, one)
    }""")
    assert not is_same_in_chunks(run, model, rng)
    (found,) = mixing_nodes(model, "s")
    assert "it counts positions by itself" in found.reason


ATTENTION = """
    axis = Constant<value_ints = [AXIS]>()
    heads = Unsqueeze(x, axis)
    mixed = Attention<is_causal = 1>(heads, heads, heads)
    y = Squeeze(mixed, axis)
"""


@pytest.mark.parametrize(("axis", "found"), [("1", []), ("2", ["FlashAttention"])])
def test_attention_looks_for_tokens_along_its_third_axis(axis, found, graph):
    model = graph(graph_text(ATTENTION.replace("AXIS", axis)))
    assert Flash().run(model, Context()).rewrites == 1
    assert [m.node.op_type for m in mixing_nodes(model, "s")] == found


REASONS = {
    "a result has some of them more than once": "y = Concat<axis = 1>(x, x)",
    "its result is as long as the call where it holds no tokens": RANGE
    + """
        along = Constant<value_ints = [2]>()
        each = Unsqueeze(x, along)
        front = Constant<value_ints = [1, 1]>()
        behind = Constant<value_ints = [1]>()
        target = Concat<axis = 0>(front, size, behind)
        wide = Expand(each, target)
        y = ReduceMax<keepdims = 0>(wide, along)
    """,
    "its tokens are not along the third axis, or not all of them": ATTENTION.replace("AXIS", "2"),
    "its queries are no tokens": """
        axis = Constant<value_ints = [1]>()
        heads = Unsqueeze(x, axis)
        sizes = Shape(heads)
        asked = ConstantOfShape<value = float[1] {0.5}>(sizes)
        mixed = Attention<is_causal = 1>(asked, heads, heads)
        y = Squeeze(mixed, axis)
    """,
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_is_said(reason, graph):
    model = graph(graph_text(REASONS[reason]))
    Flash().run(model, Context())
    (found,) = mixing_nodes(model, "s")
    assert reason in found.reason


POINTWISE = APART["a filter of one"]


def test_a_convolution_of_kernel_one_is_never_computed(graph, monkeypatch):
    monkeypatch.setattr("optc.ir.mixing.tried", None)
    assert mixing_nodes(graph(graph_text(POINTWISE)), "s") == []


def test_what_layers_repeat_is_tried_out_once(graph, monkeypatch):
    """A convolution with a kernel that is wider, of which only the middle is not 0."""
    once = POINTWISE.replace(
        "float[2,2,1] {1.0, 2.0, -1.0, 0.5}", "float[2,2,3] {0, 1, 0, 0, 2, 0, 0, -1, 0, 0, 0.5, 0}"
    )
    once = once.replace("Conv(", "Conv<pads = [1, 1]>(")
    twice = once.replace("y = ", "again = Conv<pads = [1, 1]>(made, w)\ny = ")
    twice = twice.replace("](made)", "](again)")
    runs: list[str] = []
    run = Probe.run

    def counted(self, target, given=None):
        runs.append(str(target.name))
        return run(self, target, given)

    monkeypatch.setattr(Probe, "run", counted)
    assert mixing_nodes(graph(graph_text(once)), "s") == []
    alone = len(runs)
    assert mixing_nodes(graph(graph_text(twice)), "s") == []
    assert 0 < alone == len(runs) - alone
