"""Read a part of a matrix from a file into fresh memory, and nothing else of it.

A map of the file would do with less code, but the pages that it touches count as resident memory of
the process until the map ends, and a model's weights are one file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optc.core.context import Array
from optc.core.errors import ModelFileError

__all__ = ["read_bytes", "read_matrix"]

# Bytes left out of each row from which on a call per row is cheaper than reading and dropping
# them: a call takes about as long as copying so many from the page cache.
_SKIP = 4096
_BLOCK_BYTES = 4 << 20


def read_bytes(path: str | Path, offset: int, count: int) -> Array:
    """Bytes [offset, offset + count) of a file, uint8 [count].

    Raises:
        ModelFileError: The file cannot be read, or ends before.
    """
    out = np.empty(count, np.uint8)
    with _Opened(path) as file:
        file.fill(out, offset)
    return out


def read_matrix(
    path: str | Path,
    dtype: np.dtype,
    shape: Sequence[int],
    offset: int = 0,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> Array:
    """Elements [rows, columns] of an array that lies in a file, row after row, little-endian.

    Args:
        path: The file.
        dtype: Element type, of a byte or more.
        shape: Of the whole array; two axes or more. Rows are its first axis, columns its second.
        offset: First byte of the array.
        rows: Which rows; a step of 1.
        columns: Which columns; a step of 1.

    Returns:
        A new array in memory.

    Raises:
        ModelFileError: The file cannot be read, or ends before.
    """
    first, last, _ = rows.indices(shape[0])
    left, right, _ = columns.indices(shape[1])
    count, width = max(0, last - first), max(0, right - left)
    out = np.empty((count, width, *shape[2:]), dtype.newbyteorder("<"))
    if not out.size:
        return out
    column_bytes = dtype.itemsize * int(np.prod(shape[2:], dtype=np.int64))
    row_bytes, start = column_bytes * shape[1], column_bytes * left
    flat = out.view(np.uint8).reshape(count, -1)
    with _Opened(path) as file:
        if width == shape[1]:
            file.fill(flat, offset + first * row_bytes)
        elif row_bytes - flat.shape[1] > _SKIP:
            for row in range(count):
                file.fill(flat[row], offset + (first + row) * row_bytes + start)
        else:
            _fill_by_blocks(file, flat, offset + first * row_bytes, row_bytes, start)
    return out


def _fill_by_blocks(file: _Opened, out: Array, offset: int, row_bytes: int, start: int) -> None:
    """Read whole rows, a few megabytes at a time, and keep bytes from `start` on of each."""
    step = max(1, _BLOCK_BYTES // row_bytes)
    block = np.empty((min(step, len(out)), row_bytes), np.uint8)
    for row in range(0, len(out), step):
        part = block[: len(out) - row]
        file.fill(part, offset + row * row_bytes)
        out[row : row + step] = part[:, start : start + out.shape[1]]


class _Opened:
    """A file open for reading at given places."""

    def __init__(self, path: str | Path):
        self._path = path

    def __enter__(self) -> _Opened:
        try:
            self._file = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise ModelFileError(problem, where=str(self._path)) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def fill(self, out: Array, offset: int) -> None:
        """Fill a contiguous uint8 array from `offset` on."""
        view = out.reshape(-1).data
        while view:
            try:
                count = os.preadv(self._file, [view], offset)
            except OSError as error:
                problem = f"cannot be read: {error.strerror}"
                raise ModelFileError(problem, where=str(self._path)) from error
            if not count:
                problem = f"it ends at byte {offset}, {len(view)} more are needed"
                raise ModelFileError(problem, where=str(self._path))
            view, offset = view[count:], offset + count
