"""Reading a part of a matrix from a file."""

import ml_dtypes
import numpy as np
import pytest

import optc.core.pread as pread
from optc.core.errors import ModelFileError
from optc.core.pread import read_bytes, read_matrix

_KINDS = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, np.int64]
_SHAPE = 37, 29
_SLICES = [slice(None), slice(5, 12), slice(30, 99), slice(4, 4), slice(None, 3), slice(11, None)]


def _written(path, kind, shape=_SHAPE, before=b"some bytes"):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
    path.write_bytes(before + array.tobytes() + b"more")
    return array, len(before)


@pytest.mark.parametrize("skip", [0, 1 << 20], ids=["a call per row", "whole rows"])
@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: np.dtype(kind).name)
def test_any_rows_and_columns_are_those_of_the_array(tmp_path, monkeypatch, kind, skip):
    monkeypatch.setattr(pread, "_SKIP", skip)
    monkeypatch.setattr(pread, "_BLOCK_BYTES", 4 * _SHAPE[1])
    array, offset = _written(tmp_path / "w", kind)
    for rows in _SLICES:
        for columns in _SLICES:
            got = read_matrix(tmp_path / "w", np.dtype(kind), _SHAPE, offset, rows, columns)
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(got, array[rows, columns])


def test_axes_after_the_second_stay_together(tmp_path):
    array, offset = _written(tmp_path / "w", np.float16, (4, 6, 2, 3))
    got = read_matrix(tmp_path / "w", array.dtype, array.shape, offset, slice(1, 3), slice(2, 5))
    np.testing.assert_array_equal(got, array[1:3, 2:5])


def test_what_is_read_is_memory_of_its_own_and_not_the_file(tmp_path):
    array, offset = _written(tmp_path / "w", np.float32)
    got = read_matrix(tmp_path / "w", array.dtype, _SHAPE, offset)
    (tmp_path / "w").write_bytes(b"")
    got[0] += 1
    np.testing.assert_array_equal(got[1:], array[1:])


def test_a_file_that_ends_early_or_is_not_there_is_named(tmp_path):
    _written(tmp_path / "w", np.float32)
    with pytest.raises(ModelFileError, match=r"w: it ends at byte \d+, \d+ more are needed"):
        read_bytes(tmp_path / "w", 0, 1 << 20)
    with pytest.raises(ModelFileError, match="gone: cannot be read: No such file"):
        read_bytes(tmp_path / "gone", 0, 1)
