"""Is what a graph says of a token the same however many tokens there are?

With a cache, tokens come in pieces and rows come in batches. A table or mask that says something
else of the first tokens as soon as there are more than 200 (dynamic NTK scaling, a scale of the
length) cannot be kept: what is cached was computed before. It is found by evaluating copies, a few
rows each, at counts that grow as far as is affordable, so that whatever changes its mind once has
done so by then; and at the numbers that its sub-graph holds and their neighbours, so that what is
special at one count is seen as well, and the count can be named.

A copy counts the new tokens of all rows together, which may be more than any row ever has. What is
the same at every number of tokens that a row can have, and would change beyond, is *settled*: it is
to stand in the copy as it is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.copies import Copy
from optc.ir.cost import MOST_ELEMENTS, Cost
from optc.ir.probe import Probe, ProbeFailure, ancestors, fixed_values
from optc.ir.recount import TokenAxes
from optc.ir.size_counts import ENDLESS, FEW_ELEMENTS, counts_to_try

__all__ = ["QUICK", "Steady", "end_of"]

_FEW = (1, 7)
_NEAR = (0, 1, 2)
_ROWS = 4
QUICK = 1 << 20
"""So many elements are evaluated in a moment."""
_FARTHEST = 1 << 24


def end_of(copy: Copy) -> int:
    """How many tokens a copied table has rows for; `ENDLESS` where it does not end."""
    low, high = len(_NEAR), _FARTHEST
    if copy.attempt([high - 1], high) is not None:
        return ENDLESS
    while high - low > 1:
        middle = (low + high) // 2
        if copy.attempt([middle - 1], middle) is None:
            high = middle
        else:
            low = middle
    return low


@dataclasses.dataclass(frozen=True)
class Steady:
    """The question, for one model.

    Attributes:
        model: The model.
        axes: Axes of the token input.
        limit: Tokens that a row can have.
    """

    model: ir.Model
    axes: TokenAxes
    limit: int = ENDLESS

    def copy_problem(self, value: ir.Value, copy: Copy) -> str:
        """Why a copy of a value is not the value for any number of tokens; empty if it is."""
        if self._follows_batch(value):
            return f"'{value.name}' depends on how many rows there are"
        counts = self._counts(value)
        near = _NEAR[: min(len(_NEAR), self.limit)]
        try:
            changed = _change_along(copy, near, [n for n in counts if n <= self.limit])
            changed = changed or _change_together(copy, near, counts)
        except ProbeFailure as failure:
            return f"'{value.name}' cannot be evaluated for the first tokens: {failure}"
        return self.text(value, *changed) if changed else self._far_problem(value)

    def kept_problem(self, value: ir.Value, axis: int | None) -> str:
        """Why what stays in the graph as it is does not do so for any number of tokens.

        Args:
            value: A value that depends on sizes only.
            axis: Its axis over the sequence, along which all is the same; None if it has none.
        """
        counts = self.counts(value)
        rows = [self._row(value, count, 1, axis) for count in counts]
        for at in range(1, len(counts)):
            if not _equal(rows[at - 1], rows[at]):
                return self.text(value, counts[at - 1], counts[at])
        for count, batch in [*((count, 2) for count in counts), *self.batches(value)]:
            alone, together = (self._row(value, count, n, axis) for n in (1, batch))
            if not _is_of_each_row(alone, together):
                return f"'{value.name}' depends on how many rows there are"
        return self._far_problem(value)

    def counts(self, value: ir.Value, most: int = MOST_ELEMENTS) -> list[int]:
        """Numbers of tokens that a row can have and at which a value can be evaluated, in order.

        Args:
            value: A value that depends on sizes only.
            most: Elements that a value on the way may have.
        """
        affords = self._cost(value).affords
        return [n for n in self._counts(value) if n <= self.limit and affords(n, most)]

    def batches(self, value: ir.Value) -> list[tuple[int, int]]:
        """Numbers of tokens of a row and of rows, to evaluate a value at.

        What changes with the number of rows, or of all their tokens, may do so at any of the
        numbers at which it may change with the number of tokens.
        """
        affords = self._cost(value).affords
        rows = [n for n in self._counts(value) if n > 1 and affords(n, QUICK)]
        return [(1, batch) for batch in rows] + [(_FEW[1], batch) for batch in rows[:_ROWS]]

    def settled(self, value: ir.Value) -> dict[ir.Value, Array]:
        """What is behind a value, the same at any count up to the limit, and not beyond."""
        counts = self._counts(value)
        within = [n for n in counts if n <= self.limit]
        beyond = [n for n in counts if n > self.limit]
        return {
            found: content
            for found, content in self._same_at(value, within)
            if next(self._changes(found, content, beyond), None)
        }

    @functools.cached_property
    def _fixed(self) -> dict[ir.Value | None, bool]:
        return fixed_values(self.model)

    def _counts(self, value: ir.Value) -> list[int]:
        return counts_to_try(self.model, value, self._fixed, self.limit)

    @functools.cached_property
    def _costs(self) -> dict[ir.Value, Cost]:
        return {}

    def _cost(self, value: ir.Value) -> Cost:
        """What it costs to evaluate a value for one row."""
        if value not in self._costs:
            self._costs[value] = self._measured(value)
        return self._costs[value]

    def _measured(self, value: ir.Value) -> Cost:
        def measure(count: int) -> dict[str, int]:
            probe = Probe(self.model, self.axes.sizes(count))
            probe.run(value)
            return probe.elements

        return Cost(measure)

    def _row(self, value: ir.Value, count: int, batch: int, axis: int | None) -> Array | None:
        """The value, or its one row that is the same everywhere; None if it cannot be had."""
        try:
            content = Probe(self.model, self.axes.sizes(count, batch)).run(value)
        except ProbeFailure:
            return None
        if axis is None:
            return content
        row = np.take(content, [0], axis)
        return row if (content == row).all() else content

    def _follows_batch(self, value: ir.Value) -> bool:
        """Whether it is another in a batch of other rows."""
        for count, batch in self.batches(value):
            alone, together = (self._row(value, count, n, None) for n in (1, batch))
            if alone is None or together is None or alone.ndim != together.ndim:
                continue
            fits = all(a in (1, b) for a, b in zip(alone.shape, together.shape, strict=True))
            if fits and not (alone == together).all():
                return True
        return False

    def _far_problem(self, value: ir.Value) -> str:
        """What is too large to be evaluated may hold something small that changes out there."""
        counts = [n for n in self._counts(value) if n <= self.limit]
        affords = self._cost(value).affords
        near, far = ([n for n in counts if affords(n) is which] for which in (True, False))
        for found, content in self._same_at(value, near) if far else ():
            changed = next(self._changes(found, content, far), None)
            if changed is not None:
                before = max(n for n in (_FEW[1], *counts) if n < changed)
                return self.text(found, before, changed)
        return ""

    def _same_at(self, value: ir.Value, counts: Sequence[int]) -> Iterator[tuple[ir.Value, Array]]:
        """Small values behind one that are the same at all these counts."""
        behind = ancestors(value)
        for found in [v for node in self.model.graph for v in node.outputs if v in behind]:
            content = self._row(found, _FEW[0], 1, None) if self._fixed.get(found) else None
            if content is None or content.size > FEW_ELEMENTS:
                continue
            if next(self._changes(found, content, [_FEW[1], *counts]), None) is None:
                yield found, content

    def _changes(self, value: ir.Value, content: Array, counts: Iterable[int]) -> Iterator[int]:
        """Counts at which a value is another."""
        affords = self._cost(value).affords
        for count in filter(affords, counts):
            if not _equal(content, self._row(value, count, 1, None)):
                yield count

    def text(self, value: ir.Value, few: int, many: int) -> str:
        """Says what changes, and where."""
        what = (
            f"what '{value.name}' says of the first tokens changes between {few} and {many} tokens"
        )
        if many > self.limit:
            return f"{what} of all rows together"
        return f"{what}, and a cache keeps what was computed before"


def _equal(one: Array | None, other: Array | None) -> bool:
    """Whether two are the same; what cannot be evaluated is not told apart."""
    return one is None or other is None or np.array_equal(one, other, equal_nan=_is_float(one))


def _is_of_each_row(alone: Array | None, together: Array | None) -> bool:
    """Whether one row is given what each of several is; what cannot be evaluated is not told."""
    if alone is None or together is None:
        return True
    if alone.ndim != together.ndim:
        return False
    for axis in [i for i in range(alone.ndim) if alone.shape[i] != together.shape[i]]:
        alone, first = alone.take([0], axis), together.take([0], axis)
        if not _equal(np.broadcast_to(first, together.shape), together):
            return False
        together = first
    return _equal(alone, together)


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"


def _change_along(copy: Copy, near: Sequence[int], counts: Sequence[int]) -> tuple[int, int] | None:
    """Two lengths of a row between which the copy changes what it says of the same tokens.

    At each count a few tokens are looked at: the first ones, the last one, and the last one of the
    count before.
    """

    def measure(count: int) -> dict[str, int]:
        copy.run([*near, count - 1], count)
        return copy.elements

    cost, previous, before = Cost(measure), len(near), copy.run(near, len(near))
    for count in [n for n in counts if n < len(near)]:
        first = copy.attempt(near[:count], count)
        if first is not None and not copy.same(
            copy.rows(before, range(count)), first, near[:count]
        ):
            return count, len(near)
    for count in [n for n in counts if n > len(near) and cost.affords(n)]:
        places = [*near, previous - 1]
        rows = copy.attempt([*places, count - 1], count)
        if rows is None or (copy.is_stretched(rows) and copy.attempt(near, count + 1) is None):
            return None  # its table ends
        wanted = copy.rows(before, [*range(len(near)), -1])
        if not copy.same(copy.rows(rows, range(len(places))), wanted, places):
            return previous, count
        previous, before = count, rows
    return None


def _change_together(
    copy: Copy, near: Sequence[int], counts: Sequence[int]
) -> tuple[int, int] | None:
    """Two numbers of new tokens between which it does so, where many rows hold the first few."""

    def measure(count: int) -> dict[str, int]:
        copy.run(np.resize(near, count), len(near))
        return copy.elements

    cost, alone, fewer = Cost(measure), copy.run(near, len(near)), 0
    for count in filter(cost.affords, counts):
        order = (np.arange(count) - count) % len(near)  # one alone: not the first, which may be 0
        places = np.array(near)[order]
        crowd = copy.attempt(places, len(near))
        if crowd is not None and not copy.same(crowd, copy.rows(alone, order), places):
            return (fewer, count) if count > len(near) else (count, len(near))
        fewer = count
    return None
