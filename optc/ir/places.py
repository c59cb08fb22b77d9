"""Which token each element of a value belongs to, as numbers at one number of tokens.

The places of a value are an int64 array of the value's rank: row * tokens + token, or -1 where an
element depends on no token. An axis along which nothing differs has size 1, whatever size the value
has there; so the places of [B,S,H] are [B,S,1], and those of [B*S,H] are [B*S,1].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.probe import Probe

__all__ = [
    "Mixes",
    "Places",
    "Room",
    "each_once",
    "is_chunk",
    "joined",
    "narrow",
    "still",
    "widened",
]

Places = Array


class Mixes(Exception):
    """Data of several tokens meets, or may meet; the text says how."""


class Room:
    """One model at one number of tokens, and the places of those values that are known so far.

    Args:
        probe: Evaluates parts of the model at these sizes.
        sequence: Symbol of the number of tokens.
    """

    def __init__(self, probe: Probe, sequence: str):
        self.probe = probe
        self.sequence = sequence
        self.tokens = probe.sizes[sequence]
        self.places: dict[ir.Value | None, Places] = {}
        self.shapes: dict[ir.Value, tuple[int, ...]] = {}
        self.trials: dict[tuple[object, ...], list[Places | None]] = {}
        self._sizes: dict[str | None, int | None] = {None: None}

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape of a value, inferred or found by computing it; None if it is not known."""
        if value is None:
            return None
        if value in self.shapes or value.shape is None:
            return self.shapes.get(value)
        sizes = [self._size(dim) for dim in value.shape]
        known = [size for size in sizes if size is not None]
        return tuple(known) if len(known) == len(sizes) else None

    def broadcast(self, output: ir.Value, *shapes: tuple[int, ...] | None) -> None:
        """Note the shape of a value that inference did not find, if these are broadcast to it."""
        known = [shape for shape in shapes if shape is not None]
        if self.shape(output) is not None or len(known) < len(shapes):
            return
        with contextlib.suppress(ValueError):  # they do not fit at these sizes: it stays unknown
            self.shapes[output] = np.broadcast_shapes(*known)

    def _size(self, dim: int | ir.SymbolicDim) -> int | None:
        """One size; expressions are few, and slow to evaluate."""
        if isinstance(dim, int):
            return dim
        if dim.value not in self._sizes:
            size = dim.evaluate(self.probe.sizes)
            self._sizes[dim.value] = size if isinstance(size, int) else None
        return self._sizes[dim.value]

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of axes; None if it is not known."""
        if value is None:
            return None
        shape = value.shape if value.shape is not None else self.shapes.get(value)
        return len(shape) if shape is not None else None

    def enter(self, value: ir.Value, axis: int) -> None:
        """Take an input whose tokens are along `axis`; its first other axis is the rows.

        Raises:
            Mixes: The shape of the input is not known.
        """
        shape = self.shape(value)
        if shape is None:
            raise Mixes(f"the shape of '{value.name}' is not known")
        row = next((i for i in range(len(shape)) if i != axis), None)
        made = np.arange(self.tokens).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        if row is not None:
            rows = np.arange(shape[row]).reshape([-1 if i == row else 1 for i in range(len(shape))])
            made = made + rows * self.tokens
        self.places[value] = made

    def runs(self, value: ir.Value | None) -> set[int]:
        """Axes whose size depends on the number of tokens."""
        dims = enumerate(value.shape if value is not None and value.shape is not None else ())
        symbolic = ((i, dim) for i, dim in dims if isinstance(dim, ir.SymbolicDim))
        return {i for i, dim in symbolic if self.sequence in dim.free_symbols()}


def joined(*parts: Places | None) -> Places:
    """Places of a result whose elements are each made of those that broadcasting brings together.

    Raises:
        Mixes: Elements of different tokens are brought together.
    """
    arrays = [part for part in parts if part is not None]
    try:
        made = np.full(np.broadcast_shapes(*(a.shape for a in arrays)), -1, np.int64)
    except ValueError as error:
        raise Mixes("tokens do not lie side by side") from error
    for array in arrays:
        if ((made >= 0) & (array >= 0) & (made != array)).any():
            raise Mixes("")
        made = np.maximum(made, array)
    return made


@overload
def still(places: Places, axes: Iterable[int]) -> Places: ...
@overload
def still(places: Places | None, axes: Iterable[int]) -> Places | None: ...
def still(places: Places | None, axes: Iterable[int]) -> Places | None:
    """The same places, with size 1 along `axes`, where constants may stand beside a token's data.

    Raises:
        Mixes: Tokens lie along one of them.
    """
    for axis in axes:
        if places is None or places.shape[axis] == 1:
            continue
        if _differs(places, axis):
            raise Mixes("")
        places = places.max(axis, keepdims=True)
    return places


def _differs(places: Places, axis: int) -> bool:
    """Whether there are several tokens along an axis."""
    token = np.ma.masked_less(places, 0)
    return bool(np.ma.filled(token.max(axis) != token.min(axis), False).any())


def narrow(array: Array) -> Places:
    """Full places, with size 1 along each axis where nothing differs."""
    for axis in range(array.ndim):
        first = array.take([0], axis) if array.shape[axis] else array
        if (array == first).all():
            array = first
    return array


def widened(places: Places, rank: int) -> Places:
    """The same places with axes of size 1 in front, as broadcasting adds them."""
    return places.reshape((1,) * (rank - places.ndim) + places.shape)


def is_chunk(short: Places, long: Places, counts: Sequence[int]) -> bool:
    """Whether the places for few tokens are a part of those for many, at either end.

    So a call with some tokens gives what the call with all of them gives for these. A call's last
    token alone is no such part, and in a ragged batch it may be padding.

    Args:
        short: The places where each row has `counts[0]` tokens.
        long: The places where it has `counts[1]`.
        counts: The two numbers of tokens.
    """
    few, many = counts
    if short.ndim != long.ndim or (short < 0).all():
        return False
    parts = (_part(long, many, start, few) for start in (0, many - few))
    if _is_padded(long, many) or not _in_order(long, many):
        return False
    return all(np.array_equal(part, short) for part in parts)


def _part(places: Places, count: int, start: int, few: int) -> Places:
    """What is there of the tokens from `start` on, numbered as if there were no others."""
    token = places % count
    inside = (token >= start) & (token < start + few)
    wanted = inside & (places >= 0)
    for axis in range(places.ndim):
        if places.shape[axis] == 1:
            continue
        others = tuple(i for i in range(places.ndim) if i != axis)
        kept = wanted.any(others) | (places < 0).all(others)
        places, wanted = (array.compress(kept, axis) for array in (places, wanted))
    if not (wanted | (places < 0)).all():
        return np.empty(0, np.int64)
    moved = places // count * few + places % count - start
    return np.where(places < 0, -1, moved)


def _in_order(places: Places, count: int) -> bool:
    """Whether tokens follow each other along every axis, row by row or copy by copy.

    Tables of positions are laid beside them, so another order would count as mixing.
    """
    for axis in range(places.ndim):
        ahead = np.moveaxis(places, axis, 0)
        first, second = ahead[:-1], ahead[1:]
        falls = second % count < first % count
        if (falls & (second % count != 0) & (first >= 0) & (second >= 0)).any():
            return False
    return True


def each_once(places: Places) -> bool:
    """Whether every token is there once, as a result's tokens have to be."""
    for axis in range(places.ndim):  # constants beside a token's data count as its own
        if not _differs(places, axis):
            places = places.max(axis, keepdims=True)
    return np.unique(places).size == places.size


def _is_padded(places: Places, count: int) -> bool:
    """Whether something stands beside the tokens on an axis that runs over them."""
    token = np.where(places < 0, -1, places % count)
    for axis in range(places.ndim):
        others = tuple(i for i in range(places.ndim) if i != axis)
        if _differs(token, axis) and (places < 0).all(others).any():
            return True
    return False
