"""What `quant` says its weights will take, beside what they then take."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quant_graphs import build, quantise, random

from optc.core.base import Aside
from optc.parity.hook import weight_bytes
from optc.passes.quant import Quant
from optc.rewrite.quant_scheme import SCHEMES

ROWS, OUT = 512, 320
OPTIONS = [
    *({"scheme": name} for name in SCHEMES),
    {"scheme": "int4", "symmetric": True, "group": 64},
    {"scheme": "int4", "vocabulary": 4},
    {"scheme": "w8", "group": 64},
]


def model(width: int) -> ir.Model:
    text = f"""main (int64[b, s] ids, float[{ROWS}, {width}] table, float[{width}, {OUT}] up,
      float[{OUT}, {width}] down) => (float[b, s, {width}] y)
    {{ x = Gather(table, ids)
       wide = MatMul(x, up)
       y = MatMul(wide, down) }}"""
    rng = np.random.default_rng(0)
    shapes = {"table": (ROWS, width), "up": (width, OUT), "down": (OUT, width)}
    return build(text, {name: random(rng, *shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("width", [128, 96], ids="width {}".format)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_forecast_is_what_comes_out(options: dict[str, Any], width: int) -> None:
    graph = model(width)  # groups of 64 do not divide a row of 96, so those of a table are halved
    before = weight_bytes(graph)
    told = Quant(**options).footprint(graph, before)
    assert weight_bytes(graph) == before
    quantise(graph, [{"ids": np.arange(24).reshape(1, 24)}], **options)
    assert told == pytest.approx(weight_bytes(graph), rel=0.001)
    assert told < before / 3


def test_what_is_tried_and_put_aside_is_told_too() -> None:
    graph = model(128)
    after = Quant(scheme="int4").footprint(graph, weight_bytes(graph))
    assert Quant(scheme="int4").aside(graph) == Aside(after, 2 * 128 * OUT)
    assert Quant(scheme="int4", method="rtn").aside(graph) == Aside(after, 0)
    assert Quant(scheme="int8").aside(graph).kept == 0
