"""Copies of tables and masks, evaluated for tokens at chosen positions.

What `optc.ir.recount` drafts takes its counts and positions from values of the graph with a cache.
Here these are given, and the numbers come out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.mask_rows import same_rows, seen_keys
from optc.ir.probe import Probe, ProbeFailure

__all__ = ["Copy", "TokenCounts"]


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Values of the graph that count tokens.

    Attributes:
        batch: B, int64 [1].
        new: S, int64 [1].
        positions: Position of each new token, rows one after the other, int64 [B*S].
        flat: B*S, int64 [1].
        keys: T, keys that are present after the call, int64 [1].
    """

    batch: ir.Value
    new: ir.Value
    positions: ir.Value
    flat: ir.Value
    keys: ir.Value


@dataclasses.dataclass
class Copy:
    """A drafted table or mask, which has one row per token.

    Attributes:
        model: The model.
        counts: What it is drafted over.
        value: The copy.
        axis: Its axis over tokens; -2 for a mask, whose last axis is keys.
        is_mask: Whether it is a mask.
        elements: How many elements each value has that was computed last, by name.
    """

    model: ir.Model
    counts: TokenCounts
    value: ir.Value
    axis: int = -2
    is_mask: bool = True
    elements: dict[str, int] = dataclasses.field(default_factory=dict)

    def run(self, positions: Sequence[int] | Array, keys: int) -> Array:
        """Its rows for one row of tokens at these positions, with as many keys present.

        Raises:
            ProbeFailure: It cannot be evaluated there, or is as long as something else.
        """
        counts, count, probe = self.counts, np.array([len(positions)]), Probe(self.model, {})
        given = {
            counts.batch: np.array([1]),
            counts.new: count,
            counts.flat: count,
            counts.positions: np.array(positions),
            counts.keys: np.array([keys]),
        }
        found = probe.run(self.value, given)
        self.elements = probe.elements
        if found.ndim < -self.axis or found.shape[self.axis] != len(positions):
            raise ProbeFailure("it has not one row per token")
        if self.is_mask and found.shape[-1] != keys:
            raise ProbeFailure("it has not one column per key")
        return found.reshape(-1, *found.shape[-2:]) if self.is_mask else found

    def attempt(self, positions: Sequence[int] | Array, keys: int) -> Array | None:
        """The same; None where it cannot be evaluated."""
        try:
            return self.run(positions, keys)
        except ProbeFailure:
            return None

    def same(self, got: Array, wanted: Array, positions: Sequence[int] | Array) -> bool:
        """Whether rows for these positions say the same, of the keys that both have."""
        if not self.is_mask:
            return got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-5, atol=1e-6)
        keys = min(got.shape[-1], wanted.shape[-1])
        seen = seen_keys(np.array(positions), keys)
        return same_rows(got[..., :keys], wanted[..., :keys], seen)

    def is_stretched(self, array: Array) -> bool:
        """Whether it is a mask with one column for all keys.

        One that is cut from the end of a table, at [table - keys:], is that if there is one key
        more than the table has: the place is -1 then. With two more it is nothing any more.
        """
        return self.is_mask and bool((array == array[..., :1]).all())

    def rows(self, array: Array, which: Sequence[int] | Array) -> Array:
        """Some of its rows."""
        return np.take(array, which, self.axis)
