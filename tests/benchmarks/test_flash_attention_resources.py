"""The command that prints what the kernels take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_prints_a_row_for_each_kernel(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/flash_attention_compile.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    arguments = ["--sm", "90", "--dims", "64", "--dtypes", "fp16"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    parts = ["", " window", " softcap", " bool", " bias"]
    assert [row[0].strip("| ") for row in rows] == [
        *(f"prefill{part}" for part in parts),
        *(f"split{part}" for part in parts),
        "combine",
    ]
    assert {row[-1].strip("| ") for row in rows} == {"yes"}, "all of them fit"
