"""`reference.npz` reads back what was written, and fits the model or says where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from optc.core.context import Array
from optc.core.errors import OutputError, SampleError
from optc.core.session import Port
from optc.ir.reference import Reference, Sample, load_reference, save_reference

INPUTS = [Port("input_ids", "int64", ("batch", "sequence")), Port("scale", "float32", (1,))]
OUTPUTS = [Port("logits", "float32", ("batch", "sequence", 5))]


def inputs(rows: int, count: int) -> dict[str, Array]:
    return {"input_ids": np.arange(rows * count).reshape(rows, count), "scale": np.ones(1, "f4")}


def reference(samples: int = 12) -> Reference:
    rng = np.random.default_rng(0)
    shapes = [(1 + i % 2, 3 + i) for i in range(samples)]
    return Reference(
        source="pytorch",
        samples=tuple(
            Sample(inputs(*shape), {"logits": rng.random((*shape, 5), np.float32)})
            for shape in shapes
        ),
        calibration=(inputs(1, 7), inputs(2, 2)),
        prompts=(np.array([1, 2, 3]), np.array([4])),
        continuations=(np.array([9, 8]), np.array([7, 7])),
        note="made by a test",
    )


def same(one: Reference, other: Reference) -> bool:
    try:
        np.testing.assert_equal(dataclasses.asdict(one), dataclasses.asdict(other))
    except AssertionError:
        return False
    return True


def with_input(**arrays: Array) -> Reference:
    """A reference whose second sample has other inputs."""
    good = reference(2)
    bad = Sample(good.samples[1].inputs | arrays, good.samples[1].outputs)
    return dataclasses.replace(good, samples=(good.samples[0], bad))


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    path = save_reference(reference(), tmp_path / "reference.npz")
    assert same(load_reference(path), reference())
    assert not same(load_reference(path), reference(samples=11))


def test_a_reference_may_hold_samples_only(tmp_path: Path) -> None:
    bare = Reference(source="graph", samples=reference(1).samples)
    assert same(load_reference(save_reference(bare, tmp_path / "reference.npz")), bare)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = save_reference(reference(), tmp_path / "first.npz").read_bytes()
    assert save_reference(reference(), tmp_path / "second.npz").read_bytes() == first
    changed = dataclasses.replace(reference(), note="another")
    assert save_reference(changed, tmp_path / "third.npz").read_bytes() != first


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"gone/reference\.npz: cannot be written: No such file"):
        save_reference(reference(1), tmp_path / "gone" / "reference.npz")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"reference\.npz: no such file"):
        load_reference(tmp_path / "reference.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"a,b\n1,2\n"])
def test_a_file_that_is_not_an_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "reference.npz"
    path.write_bytes(content)
    with pytest.raises(SampleError) as caught:
        load_reference(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_archive(tmp_path: Path, share: float) -> None:
    path = save_reference(reference(), tmp_path / "reference.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SampleError):
        load_reference(path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = save_reference(reference(), tmp_path / "reference.npz")
    content = bytearray(path.read_bytes())
    content[content.index(b"samples/3/outputs/logits.npy") + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(SampleError, match="damaged archive"):
        load_reference(path)


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_damage_anywhere_is_one_sentence(tmp_path: Path, pack: Callable[..., None]) -> None:
    """A few random bytes of a good file are changed, 200 times over."""
    path = save_reference(reference(3), tmp_path / "reference.npz")
    with np.load(path) as archive:
        pack(path, **archive)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        refused += refusal(path)
    assert refused > 150


def refusal(path: Path) -> bool:
    try:
        load_reference(path)
    except SampleError:
        return True
    return False


def test_another_archive_of_arrays_is_not_a_reference(tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", weights=np.ones(3))
    with pytest.raises(SampleError, match="not a reference file; make it with"):
        load_reference(tmp_path / "reference.npz")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    meta = np.array('{"version": 1, "source": "graph", "note": ""}')
    poison = np.array([{"any": "object"}], dtype=object)
    np.savez(tmp_path / "reference.npz", allow_pickle=True, meta=meta, **{"prompts/0": poison})
    with pytest.raises(SampleError, match="not a reference file"):
        load_reference(tmp_path / "reference.npz")


def test_a_later_version_says_which_it_is(tmp_path: Path) -> None:
    meta = np.array('{"version": 2, "source": "graph", "note": ""}')
    np.savez(tmp_path / "reference.npz", meta=meta)
    with pytest.raises(SampleError, match="version 2, this optc reads 1"):
        load_reference(tmp_path / "reference.npz")


def test_a_reference_that_fits_is_accepted() -> None:
    reference().check(INPUTS, OUTPUTS, "reference.npz")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (dataclasses.replace(reference(), samples=()), "r.npz: there is no sample in it"),
        (
            with_input(attention_mask=np.ones((2, 4))),
            "r.npz: sample 1: its inputs are ['attention_mask', 'input_ids', 'scale'], the model's "
            "are ['input_ids', 'scale']; make it with 'optc reference'",
        ),
        (
            with_input(input_ids=np.arange(4)),
            "r.npz: sample 1: input 'input_ids' has shape [4], the model's is [batch, sequence]; "
            "make it with 'optc reference'",
        ),
        (
            with_input(scale=np.ones(2, "f4")),
            "r.npz: sample 1: input 'scale' has shape [2], the model's is [1]; "
            "make it with 'optc reference'",
        ),
        (
            with_input(input_ids=np.ones((2, 4), np.int32)),
            "r.npz: sample 1: input 'input_ids' is int32, the model's is int64; "
            "make it with 'optc reference'",
        ),
        (
            with_input(scale=np.full(1, np.nan, "f4")),
            "r.npz: sample 1: input 'scale' contains NaN",
        ),
        (
            dataclasses.replace(reference(), calibration=({"input_ids": np.ones((1, 2), int)},)),
            "r.npz: calibration 0: its inputs are ['input_ids'], the model's are "
            "['input_ids', 'scale']; make it with 'optc reference'",
        ),
    ],
    ids=["none", "unknown", "rank", "size", "dtype", "nan", "calibration"],
)
def test_a_reference_that_does_not_fit_says_where(bad: Reference, problem: str) -> None:
    with pytest.raises(SampleError) as caught:
        bad.check(INPUTS, OUTPUTS, "r.npz")
    assert str(caught.value) == problem


def test_outputs_are_checked_too() -> None:
    with pytest.raises(SampleError, match="output 'logits' has shape"):
        reference().check(INPUTS, [Port("logits", "float32", ("batch", "sequence", 6))], "r.npz")
