"""Masks and biases over positions, for a cache: queries at their positions, all keys before them.

ALiBi, bucketed relative positions and learned tables give attention an operand over S queries and
S keys, computed from the number of tokens. With a cache, queries are the new tokens and keys are
all that are present, so the two sides are counted apart. The graph of such a mask starts as vectors
over one side, which meet in nodes whose output runs over both. Each value that enters such a node
belongs to queries or to keys; which, is tried and checked by numbers: the mask for some positions
and more keys must hold the rows of the mask for a longer sequence.

Sources: ALiBi (Press et al., 2022); bucketed relative positions (Raffel et al., 2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.copies import Copy, TokenCounts
from optc.ir.draft import Draft
from optc.ir.mask_rows import read_rows
from optc.ir.mask_sides import Edge, MaskSides, Side
from optc.ir.positions import Positions, PositionSource
from optc.ir.probe import ProbeFailure, ancestors, fixed_values
from optc.ir.recount import Recount
from optc.ir.size_counts import ENDLESS
from optc.ir.steady import Steady

__all__ = ["PositionMasks"]

# (positions of queries, keys): near ones, and ones beyond buckets and tables of usual sizes
_CHECKS = (((5, 6, 7, 2, 3, 4), 9), ((140, 7, 3, 139, 70), 150))


class PositionMasks:
    """Rewrites masks of one model; what layers share is written once.

    Args:
        positions: Finds sources of positions.
        draft: Where new nodes go.
        counts: Values that count tokens.
    """

    def __init__(self, positions: Positions, draft: Draft, counts: TokenCounts):
        self._positions = positions
        self._draft = draft
        self._counts = counts
        self._moved: dict[ir.Value, ir.Value | str] = {}

    def moved(self, mask: ir.Value, most_keys: int | None, steady: Steady) -> ir.Value | str:
        """The mask [B|1,H|1,S,T] for a cache.

        Args:
            mask: Mask [1,H|1,S,S] that depends on sizes only.
            most_keys: Size of a cache of fixed size.
            steady: Tells whether it is the same for any number of tokens.

        Returns:
            The mask, or a sentence why there is none.
        """
        if mask not in self._moved:
            self._moved[mask] = self._move(mask, most_keys, steady)
        return self._moved[mask]

    def _move(self, mask: ir.Value, most_keys: int | None, steady: Steady) -> ir.Value | str:
        settled = self._draft.constants(steady.settled(mask)) if steady.limit < ENDLESS else {}
        try:
            search = _Search(self._positions, self._draft, self._counts, mask, settled)
        except ProbeFailure as failure:
            return f"its mask '{mask.name}' cannot be evaluated: {failure}"
        made = search.find()
        if made is None:
            return f"how its mask '{mask.name}' follows from positions is not understood"
        if most_keys is not None and not search.reaches(made, most_keys):
            return f"its mask '{mask.name}' does not reach as far as the cache, {most_keys} keys"
        problem = steady.copy_problem(mask, search.copy(made))
        if problem:
            return problem
        return self._by_rows(made, search.heads) if search.by_position else made

    def _by_rows(self, mask: ir.Value, heads: int) -> ir.Value:
        """[1,H,B*S,T] as [B,H,S,T]."""
        counts, dtype = self._counts, mask.dtype
        apart = self._draft.sizes([heads, counts.batch, counts.new, -1])
        split = self._draft.node("Reshape", [mask, apart], dtype)
        return self._draft.node("Transpose", [split], dtype, perm=[1, 0, 2, 3])


class _Search:
    """The search for the sides of one mask.

    Args:
        positions: Finds sources of positions.
        draft: Where new nodes go.
        counts: Values that count tokens.
        mask: The mask.
        settled: What stands for values that do not change at any count that a row reaches.

    Attributes:
        heads: Number of heads that the mask has.
        by_position: Whether queries at different positions differ.
    """

    def __init__(
        self,
        positions: Positions,
        draft: Draft,
        counts: TokenCounts,
        mask: ir.Value,
        settled: Mapping[ir.Value, ir.Value],
    ):
        self._model, self._axes = positions.model, positions.axes
        self._positions = positions
        self._draft = draft
        self._counts = counts
        self._mask = mask
        self._settled = settled
        self._fixed = fixed_values(self._model)
        self._wholes = self._read_wholes()
        self._sides = MaskSides(self._model, self._axes, mask)
        self._recounts: dict[tuple[str, tuple[PositionSource, ...]], Recount] = {}
        self.heads = self._wholes[0][-1].shape[0]
        self.by_position = True

    def find(self) -> ir.Value | None:
        """The mask with its sides apart; None where no choice of sides is right."""
        made = self._first_right()
        if made is None or self._counts.positions in ancestors(made):
            return made
        self.by_position = False  # one row of tokens is enough then
        self._recounts.clear()
        return self._first_right()

    def _first_right(self) -> ir.Value | None:
        for sides in self._sides.choices():
            try:
                made = self._build(self._mask, sides, {})
                if all(self._is_right(made, *whole) for whole in self._wholes):
                    return made
            except ProbeFailure:
                continue
        return None

    def reaches(self, made: ir.Value, keys: int) -> bool:
        """Whether it can be computed for that many keys."""
        return self.copy(made).attempt(range(3), keys) is not None

    def copy(self, made: ir.Value) -> Copy:
        """What evaluates it."""
        return Copy(self._model, self._counts, made)

    def _read_wholes(self) -> list[tuple[Array, int, Array]]:
        """Positions and keys to try, and the mask for a sequence that reaches as far."""
        found: list[tuple[Array, int, Array]] = []
        for positions, keys in _CHECKS:
            tokens = max(*positions, keys) + 2
            try:
                whole = read_rows(self._model, self._axes, self._mask, tokens)
            except ProbeFailure:  # a table of few rows; with none it is of no use
                if not found:
                    raise
                continue
            found.append((np.array(positions), keys, whole))
        return found

    def _build(
        self, value: ir.Value, sides: dict[Edge, Side], made: dict[ir.Value, ir.Value]
    ) -> ir.Value:
        """A copy of a value over both sides; others stay."""
        node = value.producer()
        if node is None or not self._sides.is_over_both(value):
            return value
        if value not in made:
            inputs = [
                self._operand(operand, (node, index), sides, made) if operand is not None else None
                for index, operand in enumerate(node.inputs)
            ]
            made[value] = self._draft.again(node, inputs).outputs[node.outputs.index(value)]
        return made[value]

    def _operand(
        self,
        value: ir.Value,
        edge: Edge,
        sides: dict[Edge, Side],
        made: dict[ir.Value, ir.Value],
    ) -> ir.Value:
        entered = self._build(value, sides, made)
        if edge in sides:
            entered = self._on_side(value, sides[edge])
        elif entered is value and self._fixed.get(value):
            entered = self._recount("keys", ()).copy(value)  # the same at any size
        rows = sides.get((edge[0], MaskSides.ROWS)) if edge[1] == 0 else None
        if not isinstance(rows, int) or not self.by_position:
            return entered
        return self._draft.node("Gather", [entered, self._counts.positions], value.dtype, axis=rows)

    def _on_side(self, value: ir.Value, side: Side) -> ir.Value:
        if isinstance(side, str):
            return self._recount(side, self._sources(value, side)).copy(value)
        choose = ir.tensor(np.array(side))
        condition = self._draft.node("Constant", [], ir.DataType.BOOL, value=choose)
        both = [self._recount(name, ()).copy(value) for name in ("queries", "keys")]
        return self._draft.node("Where", [condition, *both], value.dtype)

    def _sources(self, value: ir.Value, side: str) -> tuple[PositionSource, ...]:
        axis = self._sides.axis(value)
        if side == "keys" or not self.by_position or axis is None:
            return ()
        found = self._positions.sources(value, axis)
        if isinstance(found, str):
            raise ProbeFailure(found)
        return found

    def _recount(self, side: str, sources: tuple[PositionSource, ...]) -> Recount:
        if (side, sources) not in self._recounts:
            queries = self._counts.flat if self.by_position else self._counts.new
            count = queries if side == "queries" else self._counts.keys
            written = {s.value: s.write(self._draft, self._counts.positions) for s in sources}
            given = {**self._settled, **written}
            self._recounts[side, sources] = Recount(self._draft, self._axes, count, given)
        return self._recounts[side, sources]

    def _is_right(self, made: ir.Value, positions: Array, keys: int, whole: Array) -> bool:
        copy = self.copy(made)
        rows = copy.attempt(positions, keys)
        return rows is not None and copy.same(rows, whole[:, positions, :keys], positions)
