"""Weights in 8 bits: symmetric, one scale per output channel, computed block by block.

`w ~ scale[c] * q` with q int8 in [-127, 127] and scale = max |w[c]| / 127. Scales are small and
computed when the pass runs; the integers are a lazy tensor, computed when the model is saved, so
that no more than one weight is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.streamed import read_tensor, sizes

__all__ = [
    "LARGEST",
    "channel_scales",
    "int8_tensor",
    "int8_values",
    "rounding_error",
]

LARGEST = 127
"""Last step of the int8 grids, of weights and of activations."""

_BLOCK_BYTES = 8 << 20


def _blocks(array: Array) -> Iterator[slice]:
    rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, array.shape[0], rows):
        yield slice(start, start + rows)


def _scaled_block(array: Array, part: slice, axis: int, factors: Array | None) -> Array:
    """Rows `part` in float32, input channels times `factors`."""
    block = array[part].astype(np.float32)
    if factors is not None:
        block *= factors[None, :] if axis == 0 else factors[part, None]
    return block


def channel_scales(
    tensor: ir.TensorProtocol, axis: int, factors: Array | None = None
) -> Array | None:
    """Scale of each output channel.

    Args:
        tensor: The weight, [C,K] or [K,C], float.
        axis: Which axis is C.
        factors: Factor on each input channel, [K], applied first.

    Returns:
        [C] in the dtype of the weight; 1.0 for a channel of zeros. None if the weight holds NaN
        or infinities.
    """
    array = read_tensor(tensor)
    largest = np.zeros(array.shape[axis], np.float32)
    for part in _blocks(array):
        magnitude = np.abs(_scaled_block(array, part, axis, factors)).max(axis=1 - axis)
        if axis == 0:
            largest[part] = magnitude
        else:
            np.maximum(largest, magnitude, out=largest)
    if not np.isfinite(largest).all():
        return None
    kind = np.dtype(tensor.dtype.numpy())
    scales = (largest / LARGEST).astype(kind)
    return np.where(scales < np.finfo(kind).tiny, kind.type(1), scales)


def int8_values(
    tensor: ir.TensorProtocol, scales: Array, axis: int, factors: Array | None = None
) -> Array:
    """The integers of a weight, in its own layout."""
    array = read_tensor(tensor)
    out = np.empty(array.shape, np.int8)
    scales = scales.astype(np.float32)
    for part in _blocks(array):
        block = _scaled_block(array, part, axis, factors)
        block /= scales[part, None] if axis == 0 else scales[None, :]
        np.rint(block, out=block)
        out[part] = np.clip(block, -LARGEST, LARGEST, out=block)
    return out


def int8_tensor(
    tensor: ir.TensorProtocol, scales: Array, axis: int, factors: Array | None = None
) -> ir.LazyTensor:
    """The integers of a weight, computed when they are asked for."""

    def compute() -> ir.Tensor[Any]:
        return ir.Tensor(int8_values(tensor, scales, axis, factors))

    return ir.LazyTensor(compute, ir.DataType.INT8, ir.Shape(sizes(tensor)))


def rounding_error(tensor: ir.TensorProtocol, scales: Array, axis: int) -> float:
    """Norm of what rounding to int8 changes, relative to the norm of the weight."""
    array = read_tensor(tensor)
    scales = scales.astype(np.float32)
    moved = size = 0.0
    for part in _blocks(array):
        block = _scaled_block(array, part, axis, None)
        size += float(np.square(block).sum())
        block /= scales[part, None] if axis == 0 else scales[None, :]
        block -= np.rint(block)
        block *= scales[part, None] if axis == 0 else scales[None, :]
        moved += float(np.square(block).sum())
    return float(np.sqrt(moved / size)) if size else 0.0
