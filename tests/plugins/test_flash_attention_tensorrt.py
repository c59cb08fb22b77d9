"""The TensorRT plugins: what TensorRT is told, as far as it can be asked without its library.

`tensorrt_host.py` says what stands in for what. Building and running an engine needs full TensorRT.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOST = Path(__file__).parent / "tensorrt_host.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In a process of its own, because TensorRT's registry ends with the process it is in."""
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    done = subprocess.run(
        [sys.executable, str(HOST)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def parameters(ptx: str) -> list[str]:
    """Types of the entry point's parameters."""
    head = ptx.partition(".visible .entry")[2].partition("\n)")[0]
    return [line.split()[1] for line in head.splitlines() if ".param" in line]


def test_every_form_and_mask_is_a_plugin(told: dict[str, Any]) -> None:
    kinds = ["Prefill", "PrefillBool", "PrefillBias", "Split", "SplitBool", "SplitBias", "Combine"]
    assert told["ids"] == [f"optc::FlashAttention{kind}" for kind in kinds]
    assert told["registry"] == [f"FlashAttention{kind}" for kind in kinds]


def test_prefill_has_the_shape_and_type_of_its_query(told: dict[str, Any]) -> None:
    answer = told["answers"]["Prefill"]
    assert answer["types"] == ["DataType.HALF"]
    assert answer["shapes"] == [[4, 32, 300, 128]]


def test_decoding_is_two_plugins_with_float32_between(told: dict[str, Any]) -> None:
    split, combine = told["answers"]["Split"], told["answers"]["Combine"]
    assert split["types"] == ["DataType.FLOAT", "DataType.FLOAT"]
    assert split["shapes"] == [[4, 32, 1, 16, 128], [4, 32, 1, 16]]
    assert combine["types"] == ["DataType.HALF"]
    assert combine["shapes"] == [[4, 32, 1, 128]]


def test_grids_cover_queries_heads_and_batch(told: dict[str, Any]) -> None:
    """300 queries are 3 tiles of 128; one token of 4 query heads a key head is 1 tile of 16."""
    grids = {name: answer["grid"] for name, answer in told["answers"].items()}
    assert grids == {
        "Prefill": [3, 32, 4],
        "PrefillBool": [3, 32, 4],
        "Split": [16, 8, 4],
        "Combine": [4 * 32, 1, 1],
    }


def test_kernels_take_the_tensors_and_integers_that_they_are_given(told: dict[str, Any]) -> None:
    """Pointers to the inputs, then S and T, then pointers to the outputs; nothing of Triton's."""
    found = {name: parameters(answer["ptx"]) for name, answer in told["answers"].items()}
    assert found == {
        "Prefill": [".u64"] * 4 + [".u32"] * 2 + [".u64"],
        "PrefillBool": [".u64"] * 5 + [".u32"] * 2 + [".u64"],
        "Split": [".u64"] * 4 + [".u32"] * 2 + [".u64"] * 2,
        "Combine": [".u64"] * 3,
    }
    assert told["answers"]["Prefill"]["integers"] == [300, 4096]
    assert told["answers"]["Split"]["integers"] == [1, 4096]
    assert told["answers"]["Combine"]["integers"] == []


def test_the_ptx_is_for_the_gpu_and_names_no_file(told: dict[str, Any]) -> None:
    for answer in told["answers"].values():
        assert ".target sm_90" in answer["ptx"]
        assert f".visible .entry {answer['kernel']}(" in answer["ptx"]
        assert ".file" not in answer["ptx"]


def test_half_precision_types_go_together(told: dict[str, Any]) -> None:
    """Query, key, value, lengths, output: each combination is five types in a row."""
    types = told["answers"]["Prefill"]["combinations"]
    combinations = {tuple(types[at : at + 5]) for at in range(0, len(types), 5)}
    assert combinations == {
        (f"DataType.{half}",) * 3 + (f"DataType.{length}", f"DataType.{half}")
        for half in ("HALF", "BF16")
        for length in ("INT64", "INT32")
    }


def test_each_tile_is_a_tactic_for_tensorrt_to_time(told: dict[str, Any]) -> None:
    assert told["answers"]["Prefill"]["tactics"] == [1, 2, 3, 4]
    assert told["answers"]["Split"]["tactics"] == [1, 2]


@pytest.mark.tensorrt
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None,
    reason="needs full TensorRT and a GPU: only it builds an engine with an embedded kernel",
)
def test_an_engine_with_the_plugin_agrees_with_float64() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "tensorrt_engine.py")],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
