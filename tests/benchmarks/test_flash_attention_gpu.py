"""The GPU benchmark, as far as it goes without one: its arithmetic, its table, its check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flash_attention_table import (
    TITLE,
    Measurement,
    Shape,
    decode_bytes,
    prefill_flops,
    section,
    table,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "flash_attention_gpu.py"

CHECK = """
import flash_attention_gpu as benchmark
from optc.plugins.flash_attention.tiles import Tile
print("\\n".join(benchmark.check("fp16", "cpu", Tile(16, 16, 4, 1), shrink=8)))
"""


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SCRIPT.parent}", **more}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def test_operations_of_causal_attention_are_counted_by_visible_pairs() -> None:
    """3 queries over 5 keys see 3 + 4 + 5 of them; a pair takes 2 products of 8 numbers."""
    assert prefill_flops(Shape(2, 4, 2, 3, 5, 8)) == (3 + 4 + 5) * 2 * 2 * 8 * (2 * 4)


def test_bytes_of_decoding_are_the_cache_once_and_the_ends() -> None:
    assert decode_bytes(Shape(2, 4, 1, 1, 100, 8), 2) == 2 * (2 * 2 * 100 * 8 + 2 * 2 * 4 * 8)


def test_the_table_compares_with_the_limit_and_the_fastest_peer() -> None:
    shape = Shape(1, 32, 8, 1, 2048, 128)
    rates = {"optc": 2e9, "PyTorch flash": 1e9, "PyTorch cuDNN": 1.6e9}
    found = [Measurement("decode", shape, n, 0.5, rate, 2.5e9) for n, rate in rates.items()]
    assert table(found).splitlines()[2:] == [
        "| optc | 1 | 1 | 2048 | 0.500 | 2000 GB/s | 80% | 1.25x |",
        "| PyTorch flash | 1 | 1 | 2048 | 0.500 | 1000 GB/s | 40% | 0.62x |",
        "| PyTorch cuDNN | 1 | 1 | 2048 | 0.500 | 1600 GB/s | 64% | 1.00x |",
    ]


def test_the_page_keeps_its_other_sections() -> None:
    page = f"# Performance\n\n## On a CPU\n\nfast\n\n{TITLE}\n\nold\n\n## Notes\n\nmore\n"
    written = section(page, "a machine", "fp16", "| new |")
    assert "old" not in written
    assert written.index("fast") < written.index("| new |") < written.index("## Notes")
    assert section(written, "a machine", "fp16", "| new |") == written


def test_a_page_without_the_section_gets_it() -> None:
    assert section("# Performance\n", "a machine", "fp16", "| new |").startswith(
        "# Performance\n\n"
    )


def test_the_numerics_part_works() -> None:
    """Interpreted, at an eighth of the sizes."""
    done = run("-c", CHECK, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert done.stdout.startswith("prefill causal_lengths S=25 T=41: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without an NVIDIA GPU")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = run(str(SCRIPT))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "no NVIDIA GPU is at hand, and nothing was measured\n"


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU: runs the compiled kernels on it"
)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_compiled_kernels_agree_with_float64(dtype: str) -> None:
    code = f"import flash_attention_gpu as benchmark; benchmark.check({dtype!r}, 'cuda')"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
