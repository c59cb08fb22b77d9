"""A build says which quantised products are slower than in float; the bundle does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from optc.rewrite.quant_grid import Grid
from optc.targets.ort import Ort
from optc.targets.speed import Instead, Kind, Speed, Timing

BUILD = ("build", "tiny/model.onnx", "--passes", "quant:scheme=w8:max-drift=9")
KIND = Kind(576, (1536,), Grid(8, 32))
SLOW = Speed(KIND, 3, (Timing(1, 0.5, 0.0), Timing(128, 2.0, 1.0)), Instead("int8-dynamic", 0.5))
FAST = Speed(KIND, 3, (Timing(1, 0.5, 0.0), Timing(128, 0.8, 0.0)))
Optc = Callable[..., Any]
Plant = Callable[..., None]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """What the target finds when it times products."""

    def plant(*speeds: Speed) -> None:
        def speed(self: Ort, model: ir.Model) -> tuple[Speed, ...]:
            assert any(node.op_type == "DequantizeLinear" for node in model.graph)
            return speeds

        monkeypatch.setattr(Ort, "speed", speed)

    return plant


def test_what_is_slower_is_noted_and_in_the_document(here: Path, optc: Optc, timed: Plant) -> None:
    timed(SLOW)
    outcome = optc(*BUILD, "--json")
    assert outcome.code == 0, outcome.err
    assert (
        "note: 3 products (576x1536; int8 in groups of 32) are 2.0x slower for 128 tokens than in "
        "float on this machine (2.0x faster for one token); quant:scheme=int8-dynamic is 2.0x "
        "faster than float there\n"
    ) in outcome.err
    assert outcome.json["speed"] == [SLOW.as_json()]


def test_what_is_faster_is_in_the_document_only(here: Path, optc: Optc, timed: Plant) -> None:
    timed(FAST)
    outcome = optc(*BUILD, "--json")
    assert "float on this machine" not in outcome.err
    assert outcome.json["speed"][0]["speedups"] == {"1": 2.0, "128": 1.25}


def test_timings_are_not_in_the_bundle(here: Path, optc: Optc, timed: Plant) -> None:
    contents = []
    for speed, name in ((SLOW, "slow.optc"), (FAST, "fast.optc")):
        timed(speed)
        assert optc(*BUILD, "-o", name).code == 0
        files = sorted(path for path in (here / name).rglob("*") if path.is_file())
        contents.append({str(p.relative_to(here / name)): p.read_bytes() for p in files})
    assert contents[0] == contents[1]


def test_nothing_is_timed_where_no_graph_may_be_run(here: Path, optc: Optc, timed: Plant) -> None:
    timed(SLOW)
    outcome = optc(*BUILD, "--evidence", "none", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["speed"] == []


def test_nothing_is_timed_that_the_machine_cannot_run(
    here: Path, optc: Optc, timed: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(SLOW)
    monkeypatch.setattr(Ort, "unavailable", lambda self: "there is no such machine here")
    assert optc(*BUILD, "--json").json["speed"] == []


def test_products_of_a_tiny_model_are_too_short_to_be_timed(here: Path, optc: Optc) -> None:
    assert optc(*BUILD, "--json").json["speed"] == []
