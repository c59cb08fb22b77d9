"""Operations that combine tokens outside attention are found, the others are not.

What a graph does is known from running it: cut into rows and chunks of tokens, which is what a cache
does to it, it gives the same or it does not.
"""

from __future__ import annotations

import numpy as np
import pytest
from mixing_graphs import APART, MIXING, graph_text

from optc.ir.mixing import mixing_nodes

TOKENS = (0, 3, 4, 9)


def in_chunks(run, model, x) -> np.ndarray | None:
    """The results for each row and some tokens, put together; None where they do not fit."""
    rows = []
    for row in x[:, None]:
        cuts = zip(TOKENS[:-1], TOKENS[1:], strict=True)
        parts = [run(model, {"x": row[:, a:b]})["y"] for a, b in cuts]
        if any(p.shape[1] != b - a for p, a, b in zip(parts, TOKENS, TOKENS[1:], strict=False)):
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
