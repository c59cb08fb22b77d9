"""Graphs of any size, and what is said of their builds."""

from __future__ import annotations

import sys
from pathlib import Path

import build_scale
import pytest
import torch
from build_scale import COMMANDS, NEEDS, OPTC, PEER, SIZES, Row, measure, section, table
from llama_graph import SIZES as CONFIGS
from llama_graph import parameters, write_llama

from optc.core.context import Context
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import open_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "tiny"
    return write_llama(CONFIGS["tiny"], folder, torch.float16)


def test_a_graph_has_the_weights_that_are_counted(tiny: Path) -> None:
    """But for norms: all are ones here, and equal ones are merged as exporters do."""
    config = CONFIGS["tiny"]
    merged = 2 * config.num_hidden_layers * config.hidden_size
    size = tiny.with_name("model.onnx.data").stat().st_size
    assert size == 2 * (parameters(config) - merged)


def test_its_passes_find_every_layer_and_it_runs(tiny: Path) -> None:
    import numpy as np

    model = load_canonical(tiny)
    layers = CONFIGS["tiny"].num_hidden_layers
    assert Flash().run(model, Context()).rewrites == layers
    assert KV().run(model, Context()).rewrites == layers
    with open_model(load_canonical(tiny)) as session:
        logits = session.run({"input_ids": np.arange(12).reshape(2, 6)})["logits"]
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


def test_sizes_are_what_they_are_called() -> None:
    for name in SIZES:
        assert parameters(CONFIGS[name]) / 1e9 == pytest.approx(float(name), rel=0.3)


def test_a_build_is_measured_as_a_process_of_its_own(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; x = bytearray(200 << 20); open(sys.argv[1], 'wb').write(x[: 1 << 20])"
    monkeypatch.setitem(
        COMMANDS, OPTC, lambda model, out: [sys.executable, "-c", code, str(out / "file")]
    )
    row = measure("tiny", OPTC, tiny, tmp_path)
    assert row.rss > 200 << 20
    assert row.cpu > 0
    assert row.written == 1 << 20
    assert not row.problem
    assert not (tmp_path / "out").exists()


def test_a_build_that_fails_says_why(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no room')"]
    monkeypatch.setitem(COMMANDS, PEER, lambda model, out: command)
    assert measure("tiny", PEER, tiny, tmp_path).problem == "no room"


def test_one_that_would_take_all_memory_is_not_tried(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDS, PEER, 1e9)
    monkeypatch.setattr(build_scale, "free_memory_bytes", lambda: 1 << 30)
    assert measure("tiny", PEER, tiny, tmp_path).problem.startswith("not tried: it needs about")


def test_the_table_has_a_line_for_each_build() -> None:
    rows = [
        Row("1", OPTC, 2 * 10**9, 2**29, 20.0, 10.0, 10**9),
        Row("1", PEER, 2 * 10**9, 0, 0, 0, 0, "not tried: why"),
    ]
    lines = table(rows).splitlines()
    assert lines[2] == "| 1.00 billion | **optc build** | 0.50 | 0.27 | 20.0 | 10.0 | 1.00 |"
    assert "not tried: why" in lines[3]
    assert "scale.md" in section(rows)
