"""`--calibration`: what is taken, and one sentence for what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optc.core.session import Port
from optc.ir.calibration_file import load_calibration
from optc.ir.reference import Reference, Sample, save_reference

MODEL = "tiny/model.onnx"
PASSES = "quant:scheme=int8:max-drift=10"
IDS = np.arange(48).reshape(4, 12) % 7

BAD = {
    "name": ({"ids": IDS}, "its inputs are ['ids'], the model's are"),
    "rank": ({"input_ids": IDS[0]}, "input 'input_ids' has shape [1], the model's is"),
    "dtype": (
        {"input_ids": IDS.astype(np.int32)},
        "input 'input_ids' is int32, the model's is int64",
    ),
    "nothing": ({"input_ids": IDS[:0]}, "there is no calibration sample in it"),
    "no tokens": ({"input_ids": IDS[:, :0]}, "input 'input_ids' is empty, [1, 0]"),
    "unknown token": (
        {"input_ids": IDS + 10**6},
        "calibration 0: 'input_ids' goes up to 1000006, the table",
    ),
    "token below 0": (
        {"input_ids": -IDS - 10**6},
        "calibration 0: 'input_ids' goes down to -1000006, the table",
    ),
    "no arrays": ({}, "there is no calibration sample in it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calibration_data_is_refused_in_a_sentence(
    case: str, here: Path, optc: Callable[..., Any]
) -> None:
    arrays, words = BAD[case]
    np.savez(here / "mine.npz", **arrays)
    outcome = optc("build", MODEL, "--passes", PASSES, "--calibration", "mine.npz")
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(here.glob("*.optc"))


@pytest.mark.parametrize("content", [b"", b"input_ids", b"PK\x03\x04 and no more"])
def test_what_is_no_archive_is_said_to_be_none(
    content: bytes, here: Path, optc: Callable[..., Any]
) -> None:
    (here / "mine.npz").write_bytes(content)
    outcome = optc("build", MODEL, "--passes", PASSES, "--calibration", "mine.npz")
    assert outcome.code == 2
    assert "mine.npz: not a reference file" in outcome.err or "damaged archive" in outcome.err


def test_one_array_without_a_name_is_no_archive(here: Path, optc: Callable[..., Any]) -> None:
    np.save(here / "mine.npy", IDS)
    outcome = optc("build", MODEL, "--passes", PASSES, "--calibration", "mine.npy")
    assert (outcome.code, outcome.out) == (2, "")
    assert "mine.npy: it holds one array without a name; write it with numpy.savez" in outcome.err


def test_a_folder_is_said_to_be_one(here: Path, optc: Callable[..., Any]) -> None:
    outcome = optc("build", MODEL, "--passes", PASSES, "--calibration", "tiny")
    assert outcome.code == 2
    assert "tiny: is a folder, not a file" in outcome.err


def test_an_input_may_be_called_like_a_part_of_a_reference(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", meta=IDS)
    samples = load_calibration(tmp_path / "mine.npz", [Port("meta", "int64", ("B", "S"))])
    assert [sample["meta"].tolist() for sample in samples] == IDS[:, None].tolist()
    reference = Reference("test", (Sample({"meta": IDS}, {}),))
    save_reference(reference, tmp_path / "reference.npz")
    (again,) = load_calibration(tmp_path / "reference.npz", [Port("meta", "int64", ("B", "S"))])
    np.testing.assert_array_equal(again["meta"], IDS)


def test_arrays_of_different_lengths_are_named(here: Path, optc: Callable[..., Any]) -> None:
    np.savez(here / "mine.npz", input_ids=IDS, other=IDS[:2])
    outcome = optc("build", MODEL, "--passes", PASSES, "--calibration", "mine.npz")
    assert outcome.code == 2
    assert "different numbers of samples: 'input_ids' has 4, 'other' has 2" in outcome.err


def test_one_array_per_input_is_taken_row_by_row(here: Path, optc: Callable[..., Any]) -> None:
    np.savez(here / "mine.npz", input_ids=IDS)
    outcome = optc(
        "build", MODEL, "--passes", PASSES, "--calibration", "mine.npz", "--force", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert '"fitted_tokens": 36' in outcome.out
