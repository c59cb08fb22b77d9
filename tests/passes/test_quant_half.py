"""`quant` on graphs in float16: small numbers keep their steps, in the graph and in the engine."""

from __future__ import annotations

import numpy as np
import pytest
from quant_graphs import C, K, build, quantise

from optc.core.context import Array
from optc.targets.ort_quant import lower_quant

HALF = f"""main (float16[b, s, {K}] x, float16[{K}, {C}] w) => (float16[b, s, {C}] y)
{{ y = MatMul(x, w) }}"""


LIMITS = {"int8": 0.03, "int8-dynamic": 0.02, "w8": 0.01, "int4": 0.15, "fp8": 0.06}


def half(rng: np.random.Generator, size: float, *shape: int) -> Array:
    return (size * rng.standard_normal(shape)).astype(np.float16)


@pytest.mark.parametrize("sizes", [(1.0, 0.001), (0.001, 1.0)], ids=["weights", "activations"])
@pytest.mark.parametrize("scheme", LIMITS)
def test_numbers_whose_steps_are_no_normal_numbers_are_not_lost(scheme, sizes, rng, run):
    x, w = half(rng, sizes[0], 1, 32, K), half(rng, sizes[1], K, C)
    model = build(HALF, {"w": w})
    quantise(model, [{"x": x[:, start::4]} for start in range(4)], scheme=scheme)
    lowered = model.clone()
    lower_quant(lowered)
    want = x.astype(np.float64) @ w
    for graph in (model, lowered):
        got = run(graph, {"x": x})["y"]
        assert np.linalg.norm(got - want) < LIMITS[scheme] * np.linalg.norm(want)
