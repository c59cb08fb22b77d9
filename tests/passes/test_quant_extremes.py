"""`quant` on weights that are hardly numbers: as large as float32 goes, and none at all."""

from __future__ import annotations

import json

import pytest
from quant_graphs import C, K, build, quantise, random, samples

LINEAR = f"""main (float[b, s, {K}] x, float[{K}, {C}] w) => (float[b, s, {C}] y)
{{ y = MatMul(x, w) }}"""


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "w8", "int4", "fp8"])
def test_weights_without_squares_in_float32_have_an_error_and_a_report(scheme, rng):
    w, data = random(rng, K, C), [{"x": feeds["x"] / 1000} for feeds in samples(rng)]
    errors = []
    for size in (1, 1e37):
        result = quantise(build(LINEAR, {"w": (w * size).astype("float32")}), data, scheme=scheme)
        json.dumps(result.details, allow_nan=False)
        errors += [row["weight_error"] for row in result.details["sites"]]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
