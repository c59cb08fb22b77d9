"""What flows through a graph on calibration data: ranges, and a few rows of each activation.

One pass over the data. The activations of one sample are fetched in groups that fit a memory
bound; of each activation [..., K] only the largest magnitude per channel and evenly spaced rows are
kept, apart for even and odd samples, so that what is learnt on one half is judged on the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Context, Feeds
from optc.core.errors import SampleError, UnsupportedError
from optc.rewrite.evenly import evenly

__all__ = ["Observation", "Seen", "fetch_groups", "observe", "tokens_of"]

_FETCH_BYTES = 512 << 20
_KEPT_BYTES = 256 << 20
_MOST_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Observation:
    """What was seen of one activation on some samples.

    Attributes:
        largest: Largest magnitude of each channel, float32 [K].
        rows: Some of its rows, float32 [R,K].
    """

    largest: Array
    rows: Array

    def joined(self, other: Observation) -> Observation:
        """Both observations as one."""
        largest = np.maximum(self.largest, other.largest)
        return Observation(largest, np.concatenate([self.rows, other.rows]))


_Halves = tuple[dict[str, Observation], dict[str, Observation]]
_Parts = list[tuple[Array, dict[str, Observation]]]


@dataclasses.dataclass(frozen=True)
class Seen:
    """One activation on both halves of the samples, or of the one sample there is."""

    even: Observation
    odd: Observation

    @property
    def folds(self) -> tuple[tuple[Observation, Observation], ...]:
        """Pairs (learn on, judge on)."""
        return ((self.even, self.odd), (self.odd, self.even))

    @property
    def largest(self) -> Array:
        """Largest magnitude of each channel on all samples."""
        return np.maximum(self.even.largest, self.odd.largest)


def tokens_of(feeds: Feeds) -> int:
    """How many positions a sample has: [B,S] of token ids and [B,S,K] of features have B*S."""
    first = next(iter(feeds.values()))
    return int(np.prod(first.shape[:-1] if first.dtype.kind == "f" else first.shape[:2]))


def observe(
    model: ir.Model, channels: Mapping[str, int], ctx: Context, samples: Sequence[Feeds]
) -> dict[str, Seen]:
    """Run `samples` once and keep what is seen of the named activations.

    Args:
        model: The graph; not changed.
        channels: The activations wanted, each with its number of channels K.
        ctx: Has the evaluator.
        samples: Calibration inputs.

    Raises:
        SampleError: An activation is not finite on some sample.
        UnsupportedError: There is no evaluator.
    """
    if not channels:
        return {}
    if ctx.evaluate is None:
        raise UnsupportedError("activations cannot be observed without a runtime")
    room = _KEPT_BYTES // (4 * sum(channels.values()) * len(samples))
    count = max(1, min(room, -(-_MOST_ROWS // len(samples))))
    groups = list(fetch_groups(channels, max(map(tokens_of, samples))))
    halves: _Halves = ({}, {})
    for number, group in enumerate(groups):
        for index, got in enumerate(ctx.evaluate(model, samples, fetch=group)):
            for name in group:
                rows = _rows(name, got.pop(name), index)
                for part, half in _assigned(rows, index, halves, alone=len(samples) == 1):
                    new = _summary(part, count)
                    half[name] = half[name].joined(new) if name in half else new
            done = number * len(samples) + index + 1
            ctx.progress("observing activations", done, len(groups) * len(samples))
    even, odd = halves
    return {name: Seen(even[name], odd[name]) for name in channels}


def fetch_groups(channels: Mapping[str, int], tokens: int) -> Iterator[list[str]]:
    """Names, in groups whose activations on one sample fit the bound."""
    group: list[str] = []
    held = 0
    for name, count in channels.items():
        size = 4 * count * tokens
        if group and held + size > _FETCH_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    yield group


def _rows(name: str, array: Array, sample: int) -> Array:
    """[..., K] as float32 [R,K]."""
    rows = array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)
    if not np.isfinite(rows).all():
        raise SampleError(
            f"calibration sample {sample} gives NaN or infinity at '{name}'",
            remedy="give other calibration data, or look for what the model does on it",
        )
    return rows


def _assigned(rows: Array, sample: int, halves: _Halves, *, alone: bool) -> _Parts:
    """Which rows go to which half: whole samples in turn, or the two halves of the only one."""
    if not alone:
        return [(rows, halves[sample % 2])]
    middle = len(rows) // 2
    first, second = (rows[:middle], rows[middle:]) if middle else (rows, rows)
    return [(first, halves[0]), (second, halves[1])]


def _summary(rows: Array, count: int) -> Observation:
    return Observation(np.abs(rows).max(axis=0), rows[evenly(len(rows), count)])
