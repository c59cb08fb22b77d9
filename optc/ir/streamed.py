"""Tensors of two axes that are computed a part at a time, from parts of other tensors.

Whatever a pass or a lowering makes of a weight is such a tensor. Nothing is computed before the
model is written, and then a few megabytes of rows at a time, so that the peak of memory does not
grow with the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.core.pread import read_bytes, read_matrix

__all__ = ["EVERY", "Part", "StreamedTensor", "blocks_of", "read_part", "read_tensor", "sizes"]

EVERY = slice(None)
_BLOCK_BYTES = 8 << 20
_SMALL_BYTES = 1 << 20
_NIBBLES = {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1}


class Part(Protocol):
    """Computes the elements [rows, columns] of a tensor; of one with three axes, whole rows."""

    def __call__(self, rows: slice, columns: slice) -> Array:
        """The part; both slices have steps of 1, and may be open at either end."""
        ...


class StreamedTensor(ir.LazyTensor):
    """A tensor that is written, and may be read, a part at a time.

    Args:
        part: Computes elements, in the tensor's own element type; of 4 bits, one to a byte.
        dtype: Element type.
        shape: Two axes or more; parts are taken along the first two.
        row_bytes: Bytes of memory that computing one row takes; those of the row by default.
        together: Rows that are computed together anyway, and not to be parted.
    """

    def __init__(
        self,
        part: Part,
        dtype: ir.DataType,
        shape: Sequence[int],
        *,
        row_bytes: int = 0,
        together: int = 1,
    ):
        super().__init__(self._whole, dtype, ir.Shape(list(shape)))
        self.part = part
        # an even number of rows, so that 4-bit elements of two rows never share a byte
        self._together = math.lcm(2, together)
        self._row_bytes = row_bytes or 4 * int(np.prod(shape[1:]))

    def _whole(self) -> ir.Tensor[Any]:
        return ir.Tensor(self.part(EVERY, EVERY), dtype=self.dtype)

    def tofile(self, file: BinaryIO) -> None:
        """Write the raw bytes, a block of rows at a time."""
        for rows in blocks_of(sizes(self)[0], self._row_bytes, self._together):
            block = self.part(rows, EVERY)
            file.write(ir.Tensor(np.ascontiguousarray(block), dtype=self.dtype).tobytes())


def sizes(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Shape of a tensor, as plain numbers."""
    return tuple(int(size) for size in tensor.shape.numpy())


def read_tensor(tensor: ir.TensorProtocol) -> Array:
    """Content of a tensor; large external data through a map that ends with the returned array.

    `ExternalTensor.numpy` maps its whole file and keeps the map, which adds up over many weights.
    """
    if not isinstance(tensor, ir.ExternalTensor) or tensor.size == 0 or _is_packed(tensor):
        return tensor.numpy()
    dtype, offset = np.dtype(tensor.dtype.numpy()).newbyteorder("<"), tensor.offset or 0
    if tensor.nbytes <= _SMALL_BYTES:
        return read_bytes(tensor.path, offset, tensor.nbytes).view(dtype).reshape(sizes(tensor))
    return np.memmap(tensor.path, dtype, "r", offset, sizes(tensor))


def read_part(tensor: ir.TensorProtocol, rows: slice = EVERY, columns: slice = EVERY) -> Array:
    """Elements [rows, columns] of a tensor with two axes or more, and nothing else of it.

    Args:
        tensor: Computed, in a file or in memory.
        rows: Along the first axis.
        columns: Along the second.

    Returns:
        Of a tensor in a file, a copy in memory: no page of the file stays mapped.
    """
    if isinstance(tensor, StreamedTensor):
        return tensor.part(rows, columns)
    packed = _is_packed(tensor)
    if not isinstance(tensor, ir.ExternalTensor) or (packed and tensor.dtype not in _NIBBLES):
        return read_tensor(tensor)[rows, columns]
    shape, offset = sizes(tensor), tensor.offset or 0
    kind = np.dtype(tensor.dtype.numpy())
    if packed:
        return _read_nibbles(tensor.path, kind, shape, offset, rows)[:, columns]
    return read_matrix(tensor.path, kind, shape, offset, rows, columns)


def _is_packed(tensor: ir.TensorProtocol) -> bool:
    """Whether elements share bytes."""
    return tensor.dtype.bitwidth < 8


def _read_nibbles(
    path: str, kind: np.dtype[Any], shape: Sequence[int], offset: int, rows: slice
) -> Array:
    """Whole rows of elements that lie two to a byte, the first one in the low bits."""
    first, last, _ = rows.indices(shape[0])
    row = int(np.prod(shape[1:], dtype=np.int64))
    start, stop = first * row, max(first, last) * row
    packed = read_bytes(path, offset + start // 2, -(-stop // 2) - start // 2)
    elements = np.empty(2 * len(packed), np.uint8)
    np.bitwise_and(packed, 15, out=elements[::2])
    np.right_shift(packed, 4, out=elements[1::2])
    return elements[start % 2 :][: stop - start].view(kind).reshape(-1, *shape[1:])


def blocks_of(length: int, row_bytes: int, multiple: int = 1) -> Iterator[slice]:
    """Slices that cover `length` rows, in blocks of a few megabytes and a multiple of `multiple`.

    Args:
        length: How many rows there are.
        row_bytes: Bytes of one row, as they will be in memory.
        multiple: Rows that must not be parted.
    """
    step = max(multiple, _BLOCK_BYTES // max(1, row_bytes) // multiple * multiple)
    for start in range(0, length, step):
        yield slice(start, min(length, start + step))
