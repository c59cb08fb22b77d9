"""What stdout and stderr carry, on a terminal and off it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from optc.cli.console import Reporter, harmless, size
from optc.parity.metrics import Metrics
from optc.parity.report import render_table
from optc.parity.rows import Row

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "optc.cli.main"]
BUILD = [*COMMAND, "build", "tiny/model.onnx", "--passes", "kv,flash"]


def test_off_a_terminal_each_step_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter()
    for done in range(3):
        report.progress("running", done, 2)
    report.log("flash: 30 rewritten")
    report.progress("comparing", 0, 1)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["running ...", "flash: 30 rewritten", "comparing ..."]
    assert captured.out == ""


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (3.21e9, "3.21 GB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_names_in_a_model_cannot_steer_the_terminal(here: Path, optc: Callable[..., Any]) -> None:
    model = ir.load(here / "tiny" / "model.onnx")
    model.producer_name = "tool\x1b[2J\x07"
    ir.save(model, here / "tiny" / "hostile.onnx")
    shown = optc("inspect", "tiny/hostile.onnx").out
    assert "tool\\x1b[2J\\x07" in shown
    assert "\x1b" not in shown
    assert "\x1b" not in optc("inspect", "\x1b[2J.onnx").err
    assert harmless("a\tb\n日本\xa0") == "a\tb\n日本\xa0"


def test_a_narrow_terminal_gets_fewer_columns_and_whole_numbers() -> None:
    row = Row("flash", "flash", "exact", Metrics(1e-4, 1e-6, 1.0, 1e-9, 1.0, 1.0, 64, 64))
    headings = [str(column.header) for column in render_table([row]).columns]
    narrow = [str(column.header) for column in render_table([row], 60).columns]
    assert len(headings) == 11
    assert set(narrow) < set(headings)
    assert {"pass", "rel L2", "greedy"} <= set(narrow)


def on_a_terminal(command: list[str], here: Path) -> tuple[str, str]:
    """Run with stderr on a terminal; stdout, and what the terminal got."""
    terminal, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=slave, text=True
    )
    os.close(slave)
    shown = b""
    while part := _read(terminal):
        shown += part
    os.close(terminal)
    out, _ = process.communicate()
    assert process.returncode == 0
    return out, shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other end is closed
        return b""


def test_on_a_terminal_bars_are_drawn_on_stderr_only(here: Path) -> None:
    out, shown = on_a_terminal(BUILD, here)
    assert "\x1b[" in shown
    assert "comparing samples" in shown
    assert "\x1b" not in out
    assert out.splitlines()[-1].startswith("wrote tiny.optc")


def test_in_a_pipe_there_is_no_escape_sequence_anywhere(
    here: Path, optc: Callable[..., Any]
) -> None:
    outcome = optc(*BUILD[3:])
    assert "\x1b" not in outcome.out + outcome.err
    assert all(line == line.rstrip() for line in outcome.out.splitlines())
