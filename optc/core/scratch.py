"""Arrays put aside on disk until they are wanted again, a part at a time.

What was computed for the weights of a whole model must not stay in memory until the model is
written. The file has no name: it is gone with the last reference to it, also after a crash.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import weakref
from typing import Any

import numpy as np

from optc.core.context import Array
from optc.core.errors import OutputError

__all__ = ["Kept", "Scratch"]

_EVERY = slice(None)


class Scratch:
    """One unnamed file in the temporary folder (the environment variable TMPDIR).

    Raises:
        OutputError: There is no temporary folder to write to.
    """

    def __init__(self) -> None:
        try:
            file = tempfile.TemporaryFile(prefix="optc-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _full(0, error) from error
        self._descriptor = file.fileno()
        self._end = 0
        weakref.finalize(self, file.close)

    def keep(self, array: Array) -> Kept:
        """Write an array [R,C], as many bytes an element as its type has.

        Raises:
            OutputError: The disk is full.
        """
        if array.ndim != 2:
            raise ValueError(f"kept arrays have two axes, not {array.ndim}")
        flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        data = memoryview(flat)
        offset = self._end
        self._end += len(data)
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._descriptor, data[done:], offset + done)
            except OSError as error:
                raise _full(len(data) - done, error) from error
        return Kept(self, offset, array.shape, array.dtype)

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from `offset`.

        Raises:
            OutputError: The file ends before.
        """
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            got = os.preadv(self._descriptor, [view[done:]], offset + done)
            if not got:
                raise OutputError("temporary data was lost", where=tempfile.gettempdir())
            done += got
        return data


@dataclasses.dataclass(frozen=True)
class Kept:
    """An array that lies in a scratch file, which it keeps open.

    Attributes:
        scratch: The file.
        offset: Where the array begins, in bytes.
        shape: [R,C].
        dtype: Element type.
    """

    scratch: Scratch = dataclasses.field(repr=False)
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, rows: slice = _EVERY, columns: slice = _EVERY) -> Array:
        """The part [rows, columns], as an array of its own; only its bytes are read.

        Args:
            rows: With step 1; may be open at either end.
            columns: Likewise.

        Raises:
            OutputError: The file was damaged.
        """
        length, width = self.shape
        top, bottom, _ = rows.indices(length)
        left, right, _ = columns.indices(width)
        count, size = max(0, bottom - top), self.dtype.itemsize
        if right - left == width:
            data = self.scratch.read(self.offset + top * width * size, count * width * size)
            return np.frombuffer(data, self.dtype).reshape(count, width)
        part = np.empty((count, max(0, right - left)), self.dtype)
        for place in range(count):
            start = self.offset + ((top + place) * width + left) * size
            line = self.scratch.read(start, part.shape[1] * size)
            part[place] = np.frombuffer(line, self.dtype)
        return part


def _full(missing: int, error: OSError) -> OutputError:
    room = f"free {missing / 1e6:.0f} MB there" if missing else "make room there"
    return OutputError(
        f"temporary data cannot be written: {error.strerror}",
        where=tempfile.gettempdir(),
        remedy=f"{room}, or set TMPDIR to a folder on a larger disk",
    )
