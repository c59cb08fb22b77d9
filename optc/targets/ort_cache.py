"""Caches that ONNX Runtime updates where they are: nothing of them is copied from step to step.

One array [rows, heads, capacity, dim] per cache input is bound as past and as present. The graph
must be able to bear that, which `optc.targets.ort_in_place` read from its edges when it was built;
the runtime's kernels then write the new tokens only. Tokens, lengths and logits are bound to arrays
that stay, too, so that a step of the same shape binds nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.errors import SampleError
from optc.core.session import Port
from optc.ir.cache_room import check_fits, row_capacity
from optc.ir.interface import LENGTHS, CachePort, token_name
from optc.targets.feeds import check_feeds

if TYPE_CHECKING:
    from optc.targets.ort_session import OrtSession

__all__ = ["IN_PLACE", "MOST_TOKENS", "Engines", "OrtCache"]

IN_PLACE = "optc.caches_in_place"
"""Metadata of an engine: the cache inputs, joined by spaces, that it may update where they are."""

MOST_TOKENS = "optc.most_tokens"
"""Metadata of an engine: the number of tokens that it knows positions for, where it has a table."""

_SMALL = 8 << 20
"""Bytes of inputs and outputs of the bindings that are kept for the next step of their shape."""


class Engines(Protocol):
    """One engine, or several of the same inputs and outputs, one for each kind of call."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What each takes."""
        ...

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What each gives."""
        ...

    def engine_for(self, tokens: int) -> OrtSession:
        """The engine that runs a call with so many new tokens in its longest row."""
        ...


@dataclasses.dataclass(frozen=True)
class _Bound:
    """Arrays that a binding reads and writes; `loose` outputs are the runtime's to allocate."""

    engine: OrtSession
    binding: Any
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    loose: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (*self.inputs.values(), *self.outputs.values()))


class OrtCache:
    """Implements `optc.core.session.Cache`; made by `new_cache` of a session.

    Memory that no token has been written to is reserved and not used: a row with much room costs
    what its tokens need.

    Args:
        engines: Run the graph; all of them on the same memory.
        caches: Its cache inputs, all of which the engines update in place.
        rows: Number of rows.
        tokens: Tokens that a row must have room for.

    Raises:
        UnsupportedError: The caches have a fixed size, and it is smaller.
    """

    def __init__(self, engines: Engines, caches: Sequence[CachePort], rows: int, tokens: int):
        limit = row_capacity(caches, tokens)
        self._engines = engines
        self._caches = tuple(caches)
        self._rows, self._capacity = rows, limit
        self._buffers = {c.past: _buffer(c, rows, limit) for c in caches}
        names = {cache.past for cache in caches}
        self._ports = tuple(port for port in engines.inputs if port.name not in names)
        self._tokens = token_name(port.name for port in self._ports) or ""
        self._bound: dict[object, _Bound] = {}
        self._seconds = 0.0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._rows

    @property
    def capacity(self) -> int:
        """Tokens that a row can have."""
        return self._capacity

    @property
    def seconds(self) -> float:
        """Seconds spent inside the runtime, over all steps."""
        return self._seconds

    def step(self, feeds: Feeds, fetch: tuple[str, ...], *, row: int = 0) -> dict[str, Array]:
        """Run once; see `optc.core.session.Cache`.

        Raises:
            SampleError: An input that is missing, unknown or does not fit.
            UnsupportedError: No room for the new tokens, or the runtime failed.
        """
        bound = self._binding(feeds, fetch, row)
        self._check_room(feeds)
        for name, array in feeds.items():
            bound.inputs[name][...] = array
        started = time.perf_counter()
        bound.engine.run_bound(bound.binding)
        self._seconds += time.perf_counter() - started
        if not bound.loose:
            return bound.outputs
        made = bound.binding.get_outputs()[-len(bound.loose) :]
        loose = dict(zip(bound.loose, (value.numpy() for value in made), strict=True))
        self._take_encoded(loose)
        return {**bound.outputs, **loose}

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of a row over another, and what an encoder gave for it."""
        for cache in self._caches:
            buffer = self._buffers[cache.past]
            count = buffer.shape[2] if cache.is_cross else tokens
            buffer[target, :, :count] = buffer[source, :, :count]

    def _take_encoded(self, loose: dict[str, Array]) -> None:
        """Keep what the encoder gave; from now on it is past and present of its cache."""
        for cache in self._caches:
            if cache.is_cross and cache.present in loose:
                self._buffers[cache.past] = loose.pop(cache.present)
                self._bound.clear()

    def _check_room(self, feeds: Feeds) -> None:
        """The kernels would write behind the buffer's end, or in front of it, without a word."""
        check_fits(feeds[LENGTHS], feeds[self._tokens].shape[1], self._capacity)

    def _binding(self, feeds: Feeds, fetch: tuple[str, ...], row: int) -> _Bound:
        shapes = tuple((name, array.dtype, array.shape) for name, array in feeds.items())
        key = (row, fetch, shapes)
        found = self._bound.get(key)
        if found is not None:
            return found
        made = self._bind(feeds, fetch, row)
        if made.bytes <= _SMALL:
            while self._bound and made.bytes + self._kept_bytes() > _SMALL:
                self._bound.pop(next(iter(self._bound)))
            self._bound[key] = made
        return made

    def _kept_bytes(self) -> int:
        return sum(bound.bytes for bound in self._bound.values())

    def _bind(self, feeds: Feeds, fetch: tuple[str, ...], row: int) -> _Bound:
        check_feeds(self._ports, feeds)
        end = row + feeds[LENGTHS].shape[0]
        if not 0 <= row <= end <= self._rows:
            raise SampleError(f"rows {row} to {end} are not in a cache of {self._rows} rows")
        engine = self._engines.engine_for(feeds[self._tokens].shape[1])
        binding = engine.binding()
        inputs = {name: np.empty(array.shape, array.dtype) for name, array in feeds.items()}
        for name, array in inputs.items():
            _bind(binding.bind_input, name, array)
        encoded = self._bind_caches(binding, row, end)
        outputs, loose = self._outputs(fetch, feeds)
        for name, array in outputs.items():
            _bind(binding.bind_output, name, array)
        loose += encoded
        for name in loose:
            binding.bind_output(name)
        return _Bound(engine, binding, inputs, outputs, loose)

    def _bind_caches(self, binding: Any, row: int, end: int) -> tuple[str, ...]:
        """Bind rows of each cache as past and present; names of those that an encoder will give."""
        encoded = []
        for cache in self._caches:
            rows = self._buffers[cache.past][row:end]
            _bind(binding.bind_input, cache.past, rows)
            if rows.shape[2]:
                _bind(binding.bind_output, cache.present, rows)
            else:
                encoded.append(cache.present)
        if encoded and end - row < self._rows:
            raise SampleError("the first step of an encoder-decoder takes all rows of its cache")
        return tuple(encoded)

    def _outputs(
        self, fetch: tuple[str, ...], feeds: Feeds
    ) -> tuple[dict[str, Array], tuple[str, ...]]:
        """Arrays for the outputs whose shape follows from the inputs', and the names of others."""
        named = {port.name: port for port in self._engines.outputs}
        sizes = _sizes(self._ports, feeds)
        made, loose = dict[str, Array](), list[str]()
        held = {cache.present for cache in self._caches}
        for name in fetch:
            if name not in named or name in held:
                what = "a cache, which stays where it is" if name in held else "no output"
                raise SampleError(f"'{name}' is {what}")
            shape = [sizes.get(dim, dim) for dim in named[name].shape]
            whole = [dim for dim in shape if isinstance(dim, int)]
            if len(whole) == len(shape):
                made[name] = np.empty(whole, np.dtype(named[name].dtype))
            else:
                loose.append(name)
        return made, tuple(loose)


def _buffer(cache: CachePort, rows: int, tokens: int) -> Array:
    """Room for `tokens` tokens; none yet for what an encoder gives."""
    count = 0 if cache.is_cross else cache.capacity or tokens
    return np.zeros((rows, cache.heads, count, cache.dim), np.dtype(cache.dtype))


def _sizes(inputs: Sequence[Port], feeds: Feeds) -> dict[int | str, int]:
    """What the symbols of the inputs' shapes stand for."""
    return {
        dim: size
        for port in inputs
        for dim, size in zip(port.shape, feeds[port.name].shape, strict=True)
        if isinstance(dim, str) and dim != "?"
    }


def _bind(bind: Any, name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
