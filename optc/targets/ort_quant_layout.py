"""Weights in the layout of ONNX Runtime's block kernels, computed a few channels at a time.

`MatMulNBits` and `GatherBlockQuantized` read a weight as unsigned steps [C, blocks, bytes], where a
block is a run of inputs of one channel with one scale; of 4 bits, the first of two steps is the low
half of a byte. Without zero points the middle step, 8 or 128, stands for zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.streamed import EVERY, StreamedTensor, read_part, read_tensor, sizes
from optc.targets.ort_quant_match import Weight, constant_tensor

__all__ = [
    "block_count",
    "block_length",
    "block_scales",
    "block_steps",
    "block_zeros",
    "lookup_zeros",
    "transposed",
]

_LENGTHS = (64, 32, 16)  # longer ones are faster, and round activations more coarsely
_SHORTEST = _LENGTHS[-1]
_WORTH_IT = 32  # scales of shorter blocks are more bytes than what filling up adds


def block_length(weight: Weight) -> int | None:
    """How many inputs of a channel are a block: a power of two, 16 at least, within one group.

    Where groups do not divide the inputs, shorter blocks with the scale of their group may: 576
    inputs in groups of 128 are nine blocks of 64, and no byte is filled up.

    Returns:
        Input channels per block; None if groups cannot be cut into such blocks.
    """
    if not weight.group:
        return next((n for n in _LENGTHS if weight.inner % n == 0), _SHORTEST)
    longest, even = (_power_of_two(n) for n in (weight.group, math.gcd(weight.group, weight.inner)))
    if longest < _SHORTEST:
        return None
    return even if even >= _WORTH_IT else longest


def _power_of_two(number: int) -> int:
    """The largest power of two that divides `number`."""
    return number & -number


def block_count(weight: Weight, length: int) -> int:
    """How many blocks a channel has; the last may be filled up."""
    return -(-weight.inner // length)


def block_steps(weight: Weight, length: int) -> StreamedTensor:
    """uint8 [C, blocks, bytes]."""
    count, per_byte = block_count(weight, length), 8 // weight.bits
    middle = 2 ** (weight.bits - 1)

    def part(rows: slice, columns: slice) -> Array:
        first, last, _ = columns.indices(count)
        inputs = slice(first * length, min(last * length, weight.inner))
        found = _from_zero_up(_read(weight.integers, weight.axis, rows, inputs), weight)
        steps = np.full((len(found), (last - first) * length), middle, np.uint8)
        steps[:, : found.shape[1]] = found
        return _packed(steps, per_byte).reshape(len(found), last - first, length // per_byte)

    shape = (weight.outer, count, length // per_byte)
    return StreamedTensor(part, ir.DataType.UINT8, shape, row_bytes=4 * weight.inner)


def block_scales(weight: Weight, length: int) -> StreamedTensor:
    """[C, blocks], in the type of the weight's scales."""
    shape = (weight.outer, block_count(weight, length))

    def part(rows: slice, columns: slice) -> Array:
        return _by_block(weight, weight.scale, length, rows)[:, columns]

    return StreamedTensor(part, weight.dtype, shape)


def block_zeros(weight: Weight, length: int) -> StreamedTensor | None:
    """uint8 [C, bytes], packed as the steps are; None where the middle step stands for zero."""
    if _has_middle_zero(weight):
        return None
    per_byte = 8 // weight.bits
    width = -(-block_count(weight, length) // per_byte)

    def part(rows: slice, columns: slice) -> Array:
        zeros = _zeros(weight, length, rows)
        return _packed(np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % per_byte))), per_byte)[
            :, columns
        ]

    return StreamedTensor(part, ir.DataType.UINT8, (weight.outer, width))


def lookup_zeros(weight: Weight, length: int) -> StreamedTensor | None:
    """uint8 [C, blocks, 1]: one to a byte, for lookups along blocks; None as for `block_zeros`."""
    if _has_middle_zero(weight):
        return None

    def part(rows: slice, columns: slice) -> Array:
        return _zeros(weight, length, rows)[:, columns, None]

    shape = (weight.outer, block_count(weight, length), 1)
    return StreamedTensor(part, ir.DataType.UINT8, shape)


def transposed(weight: Weight) -> StreamedTensor:
    """The integers with their axes exchanged."""
    rows, columns = sizes(weight.tensor)

    def part(rows: slice, columns: slice) -> Array:
        return np.ascontiguousarray(read_part(weight.tensor, columns, rows).T)

    return StreamedTensor(part, weight.tensor.dtype, (columns, rows))


def _read(value: ir.Value, axis: int, rows: slice, columns: slice = EVERY) -> Array:
    """Elements [C,K] of a constant whose axis `axis` is C."""
    tensor = constant_tensor(value)
    if axis == 0:
        return read_part(tensor, rows, columns)
    return read_part(tensor, columns, rows).T


def _by_block(weight: Weight, value: ir.Value, length: int, rows: slice) -> Array:
    """What is stored per channel or per group, as [C, blocks]."""
    count = block_count(weight, length)
    if not weight.group:
        return np.repeat(read_tensor(constant_tensor(value))[rows, None], count, axis=1)
    groups = np.arange(count) * length // weight.group
    return _read(value, weight.axis, rows)[:, groups]


def _has_middle_zero(weight: Weight) -> bool:
    return weight.is_signed and weight.zero is None


def _zeros(weight: Weight, length: int, rows: slice) -> Array:
    """The steps that stand for zero, uint8 [C, blocks]."""
    if weight.zero is not None:
        return _from_zero_up(_by_block(weight, weight.zero, length, rows), weight)
    start, stop, _ = rows.indices(weight.outer)
    return np.zeros((stop - start, block_count(weight, length)), np.uint8)


def _from_zero_up(steps: Array, weight: Weight) -> Array:
    """Steps counted from the first of their grid, uint8."""
    if not weight.is_signed:
        return steps.astype(np.uint8)
    moved: Array = steps.astype(np.int8).view(np.uint8) + np.uint8(2 ** (weight.bits - 1))
    return moved


def _packed(steps: Array, per_byte: int) -> Array:
    """One or two steps to a byte along the last axis."""
    if per_byte == 1:
        return steps
    packed: np.ndarray[Any, Any] = steps[:, ::2] | (steps[:, 1::2] << 4)
    return packed
