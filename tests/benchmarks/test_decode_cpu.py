"""The decoding benchmark without its peers: what a worker answers, and the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from decode_contenders import CONTENDERS, PEERS, Contender
from decode_table import Result, Row, same, table
from page import machine

WORKER = """
import time
from serve import serve

def generate(prompt, new_tokens, emit):
    print("a library that talks")
    time.sleep(0.2)
    for token in range(new_tokens):
        emit(len(prompt) + token)
        time.sleep(0.02)

serve(generate, "tiny 1.0")
"""


def test_a_worker_says_its_version_and_times_its_own_tokens(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    requests = [{"prompt": [5, 6], "new_tokens": 3}, {"prompt": [5], "new_tokens": 2}]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "worker.py")],
        input="\n".join(map(json.dumps, requests)),
        env={"PYTHONPATH": str(PEERS)},
        capture_output=True,
        text=True,
        check=True,
    )
    version, first, second = map(json.loads, done.stdout.splitlines())
    assert version == {"version": "tiny 1.0"}
    assert (first["tokens"], second["tokens"]) == ([2, 3, 4], [1, 2])
    assert first["ttft"] >= 0.2
    assert first["decode"] >= 0.04
    assert first["rss"] > 1e6


def test_the_rate_counts_the_tokens_after_the_first() -> None:
    assert Result(ttft=1.0, decode=2.0, tokens=[1] * 9, rss=0).rate == 4.0


@pytest.mark.parametrize(
    ("tokens", "count"), [([1, 2, 3], 3), ([1, 9, 3], 1), ([9, 2, 3], 0), ([1, 2], 2)]
)
def test_tokens_are_the_same_up_to_the_first_that_differs(tokens: list[int], count: int) -> None:
    assert same(tokens, [1, 2, 3]) == count


def test_ratios_above_one_are_faster_and_larger() -> None:
    base = Row("PyTorch eager", "torch", True, 1.0, 10.0, 6 * 10**8, 10**9, [1, 2])
    ours = Row("optc", "optc", True, 0.5, 30.0, 10**8, 5 * 10**8, [1, 3])
    *_, first, second = table([base, ours]).splitlines()
    assert first == "| PyTorch eager | 1000 | 1.00 | 10.0 | 1.00 | 600 | 1000 | 1.00 | 2 |"
    assert second == "| **optc** | 500 | 2.00 | 30.0 | 3.00 | 100 | 500 | 0.50 | 1 |"


def test_every_contender_has_its_script_and_its_environment() -> None:
    for contender in CONTENDERS:
        assert (PEERS / contender.script).is_file()
        if contender.environment != "ours":
            assert (PEERS / f"requirements-{contender.environment}.txt").is_file()


def test_only_files_that_hold_the_model_count(tmp_path: Path) -> None:
    contender = Contender("other", "ours", "run_optc.py", "made")
    for name, size in (("model.onnx", 5), ("below/model.onnx.data", 70), ("reference.npz", 1000)):
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_bytes(bytes(size))
    assert contender.size(tmp_path) == 75


def test_a_table_names_the_processor_that_it_was_measured_on(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: fpu\n" * 2, "utf-8")
    assert machine(info).startswith("Some CPU @ 2 GHz, ")
    assert machine(tmp_path / "none").endswith(" cores")
