"""What `quant` says its weights will take, beside what they then take."""

from __future__ import annotations

import numpy as np
import pytest
from quant_graphs import build, quantise, random

from optc.parity.hook import weight_bytes
from optc.passes.quant import Quant

ROWS, WIDTH, OUT = 512, 128, 320
TEXT = f"""main (int64[b, s] ids, float[{ROWS}, {WIDTH}] table, float[{WIDTH}, {OUT}] up,
  float[{OUT}, {WIDTH}] down) => (float[b, s, {WIDTH}] y)
{{ x = Gather(table, ids)
   wide = MatMul(x, up)
   y = MatMul(wide, down) }}"""


def model():
    rng = np.random.default_rng(0)
    shapes = {"table": (ROWS, WIDTH), "up": (WIDTH, OUT), "down": (OUT, WIDTH)}
    return build(TEXT, {name: random(rng, *shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "w8"},
        {"scheme": "int4", "method": "rtn"},
        {"scheme": "int4", "method": "rtn", "symmetric": True, "group": 64},
        {"scheme": "int4", "method": "rtn", "vocabulary": 4},
    ],
    ids=str,
)
def test_the_forecast_is_what_comes_out(options) -> None:
    graph = model()
    before = weight_bytes(graph)
    told = Quant(**options).footprint(graph, before)
    assert weight_bytes(graph) == before
    quantise(graph, [], **options)
    assert told == pytest.approx(weight_bytes(graph), rel=0.01)
    assert told < before / 3
