"""Arrays put aside on disk: what comes back, what is read for it, and when the file goes."""

import gc
import os
import tempfile
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from optc.core.errors import OutputError
from optc.core.scratch import Scratch

TYPES = [np.int8, np.uint8, np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
PARTS = [
    (slice(None), slice(None)),
    (slice(3, 7), slice(None)),
    (slice(None, 4), slice(2, 9)),
    (slice(9, None), slice(10, None)),
    (slice(4, 4), slice(None)),
    (slice(8, 50), slice(4, 4)),
]


def _array(kind=np.int8, seed=0):
    return np.random.default_rng(seed).integers(-100, 100, (11, 13)).astype(kind)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_one_of_several_arrays_comes_back_as_it_was(kind, part):
    scratch = Scratch()
    arrays = [_array(np.uint8, 1), _array(kind, 2), _array(kind, 3).T]
    kept = [scratch.keep(array) for array in arrays]
    for array, one in zip(arrays, kept, strict=True):
        found = one.read(*part)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[part])


def test_a_part_may_be_written_to_and_changes_nothing_that_is_kept():
    kept = Scratch().keep(_array())
    kept.read()[:] = 0
    np.testing.assert_array_equal(kept.read(), _array())


def test_only_the_bytes_asked_for_are_read(monkeypatch):
    kept, counts = Scratch().keep(_array()), []
    read = os.preadv

    def counted(*args):
        counts.append(read(*args))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", counted)
    kept.read(slice(2, 5))
    kept.read(slice(2, 5), slice(1, 3))
    assert sum(counts) == 3 * 13 + 3 * 2


def test_a_write_or_read_of_fewer_bytes_than_asked_goes_on(monkeypatch):
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:10], at))
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: read(file, [parts[0][:7]], at))
    np.testing.assert_array_equal(Scratch().keep(_array()).read(), _array())


def test_the_file_has_no_name_and_closes_with_the_last_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = Scratch()
    descriptor = scratch._descriptor
    kept = scratch.keep(_array())
    assert not list(tmp_path.iterdir())
    del scratch
    gc.collect()
    np.testing.assert_array_equal(kept.read(), _array())
    del kept
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_threads_do_not_write_over_each_other():
    scratch, kept = Scratch(), {}

    def keep(seed):
        kept[seed] = scratch.keep(_array(seed=seed))

    threads = [threading.Thread(target=keep, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, one in kept.items():
        np.testing.assert_array_equal(one.read(), _array(seed=seed))


def test_a_full_disk_is_a_sentence(monkeypatch):
    full = Path("/dev/full").open("r+b", 0)  # noqa: SIM115 - closed by what it is given to
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(OutputError, match=r"No space left on device; free 1 MB.*TMPDIR"):
        Scratch().keep(np.zeros((1000, 1000), np.int8))


def test_no_temporary_folder_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match=r"No such file or directory; make room.*TMPDIR"):
        Scratch()


def test_arrays_have_two_axes():
    with pytest.raises(ValueError, match="two axes, not 1"):
        Scratch().keep(np.zeros(3, np.int8))
