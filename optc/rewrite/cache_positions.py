"""Make everything that counts positions follow the lengths of a cache.

First all is found out and drafted, then it is put in at once, or thrown away where something stands
in the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence

import onnx_ir as ir

from optc.core.base import Refusal
from optc.core.context import Array
from optc.ir.copies import Copy, TokenCounts
from optc.ir.draft import Draft
from optc.ir.elementwise import ELEMENTWISE
from optc.ir.flash_attention import DOMAIN, INPUTS, read_spec
from optc.ir.mask_rows import shows_everything
from optc.ir.position_masks import PositionMasks
from optc.ir.position_uses import PositionUse, data_uses, position_uses
from optc.ir.positions import Positions, PositionSource
from optc.ir.probe import Probe, ProbeFailure, data_inputs
from optc.ir.recount import Recount, TokenAxes
from optc.ir.size_counts import ENDLESS
from optc.ir.size_operands import SizeOperands
from optc.ir.steady import Steady, end_of

__all__ = ["CachePositions"]

_MASK = INPUTS.index("mask")


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table of positions and its copy, which has a row for each token of all rows.

    Attributes:
        use: The table, where it meets the data.
        axis: Its axis over the sequence.
        sources: Where its positions come from.
        flat: The copy.
        small: The shape of the table for two tokens.
    """

    use: PositionUse
    axis: int
    sources: tuple[PositionSource, ...]
    flat: ir.Value
    small: tuple[int, ...]


class CachePositions:
    """The places of one model where positions count, rewritten for a cache.

    Args:
        model: Changed by `keep` only.
        axes: Axes of the token input.
        lengths: Tokens of each row before the call, int64 [B]; not yet in the graph.
        tokens: The token input [B,S].

    Attributes:
        keys: Number of keys after the call, int64 [1]: the caller puts what it is in its place.
        places: How many values were rewritten.
    """

    def __init__(self, model: ir.Model, axes: TokenAxes, lengths: ir.Value, tokens: ir.Value):
        self.keys = ir.val("present_keys", ir.DataType.INT64, [1])
        self.places = 0
        self._model = model
        self._axes = axes
        self._draft = Draft(model, "cached")
        self._counts = _counts(self._draft, lengths, tokens, self.keys)
        self._positions = Positions(model, axes)
        self._masks = PositionMasks(self._positions, self._draft, self._counts)
        self._rows = self._draft.sizes([self._counts.batch, self._counts.new])
        self._split: dict[tuple[ir.Value, int, int], ir.Value] = {}
        self._recounts: dict[tuple[tuple[PositionSource, ...], tuple[ir.Value, ...]], Recount] = {}
        self._replacements: list[tuple[ir.Node, int, ir.Value | None]] = []

    def prepare(
        self, sites: Sequence[ir.Node], most_keys: int | None, beside: Container[ir.Node] = ()
    ) -> list[Refusal]:
        """Draft the rewriting.

        Args:
            sites: Canonical attention nodes.
            most_keys: Size of a cache of fixed size.
            beside: Nodes that are not about the tokens.

        Returns:
            What stands in the way.
        """
        uses = position_uses(self._model, self._axes, beside)
        known = [use for use in uses if isinstance(use, PositionUse)]
        problems = [use for use in uses if isinstance(use, str)]
        tables = [made for use in known if use.axis is not None and (made := self._table(use))]
        problems += [made for made in tables if isinstance(made, str)]
        found = [made for made in tables if not isinstance(made, str)]
        ends = [end_of(self._copy(table)) for table in found]
        steady = Steady(self._model, self._axes, min([most_keys or ENDLESS, *ends]))
        refusals = [
            r for node in sites if (r := self._prepare_mask(node, most_keys, steady)) is not None
        ]
        moving = {table.use.value for table in found}
        kept = [use for use in known if use.value not in moving]
        problems += [p for use in kept if (p := steady.kept_problem(use.value, use.axis))]
        problems += [p for table in found if (p := self._prepare_table(table, steady))]
        problems += SizeOperands(steady).problems(beside)
        return refusals + [Refusal("positions", problem) for problem in problems]

    def keep(self) -> dict[ir.Node, ir.Value | None]:
        """Put everything in. Returns the new mask of each site that had one."""
        self._draft.keep()
        masks: dict[ir.Node, ir.Value | None] = {}
        for node, index, value in self._replacements:
            if node.domain == DOMAIN:
                masks[node] = value
            else:
                node.replace_input_with(index, value)
        return masks

    def discard(self) -> None:
        """Leave the model as it is."""
        self._draft.discard()

    def _prepare_mask(self, site: ir.Node, most_keys: int | None, steady: Steady) -> Refusal | None:
        if not read_spec(site).mask:
            return None
        mask = site.inputs[_MASK]
        assert mask is not None
        made: ir.Value | str | None
        if inputs := data_inputs(mask):
            names = ", ".join(sorted(str(v.name) for v in inputs))
            made = f"its mask depends on the input {names}"
        elif shows_everything(self._model, self._axes, mask):
            made = None
        else:
            made = self._masks.moved(mask, most_keys, steady)
        if isinstance(made, str):
            return Refusal(str(site.outputs[0].name), made)
        self.places += made is not None
        self._replacements.append((site, _MASK, made))
        return None

    def _table(self, use: PositionUse) -> _Table | str | None:
        """A copy of a table; None if it is the same at every position; why not, otherwise."""
        assert use.axis is not None
        sources = self._positions.sources(use.value, use.axis)
        if isinstance(sources, str):
            return sources
        if not sources:  # as long as the call
            return None
        try:
            flat = self._recount(sources).copy(use.value)
            small = Probe(self._model, self._axes.sizes(2)).run(use.value).shape
        except ProbeFailure as failure:
            return f"'{use.value.name}' depends on positions: {failure}"
        return _Table(use, use.axis, sources, flat, small)

    def _copy(self, table: _Table) -> Copy:
        return Copy(self._model, self._counts, table.flat, table.axis, is_mask=False)

    def _prepare_table(self, table: _Table, steady: Steady) -> str:
        """Draft one table for its users; why not, otherwise."""
        value = table.use.value
        if steady.limit < ENDLESS and (settled := steady.settled(value)):
            flat = self._recount(table.sources, settled).copy(value)
            table = dataclasses.replace(table, flat=flat)
        problem = steady.copy_problem(value, self._copy(table))
        if problem:
            return problem
        self.places += 1
        for node, index in data_uses(self._model, value):
            made = self._by_rows(table, node)
            if isinstance(made, str):
                return made
            self._replacements.append((node, index, made))
        return ""

    def _recount(
        self, sources: tuple[PositionSource, ...], settled: Mapping[ir.Value, Array] | None = None
    ) -> Recount:
        key = sources, tuple(settled or ())
        if key not in self._recounts:
            given = self._draft.constants(settled or {})
            given |= {s.value: s.write(self._draft, self._counts.positions) for s in sources}
            self._recounts[key] = Recount(self._draft, self._axes, self._counts.flat, given)
        return self._recounts[key]

    def _by_rows(self, table: _Table, user: ir.Node) -> ir.Value | str:
        """[.., B*S, ..] with the batch as an axis of its own, where the user has it."""
        use, output, dims = table.use, user.outputs[0].shape, list(table.small)
        batch_at, added = 0, 0
        if user.op_type in ELEMENTWISE and output is not None:
            names = [d.value if isinstance(d, ir.SymbolicDim) else None for d in output]
            if names.count(self._axes.batch) != 1:
                return f"the batch is no axis where '{use.value.name}' is used"
            batch_at, added = names.index(self._axes.batch), len(output) - len(dims)
        dims, along = [1] * added + dims, table.axis + added
        if added < 0 or batch_at == along or dims[batch_at] != 1:
            return f"'{use.value.name}' depends on positions, and has no axis for the batch"
        key = use.value, len(dims), batch_at
        if key not in self._split:
            self._split[key] = self._split_rows(table.flat, dims, along, batch_at)
        return self._split[key]

    def _split_rows(self, flat: ir.Value, dims: list[int], along: int, batch_at: int) -> ir.Value:
        parts: list[int | ir.Value] = list(dims)
        parts[along] = self._rows
        del parts[batch_at]
        value = self._draft.node("Reshape", [flat, self._draft.sizes(parts)], flat.dtype)
        order = _order(len(dims), along, batch_at)
        if order != sorted(order):
            value = self._draft.node("Transpose", [value], flat.dtype, perm=order)
        shape: list[int | str] = list(dims)
        shape[batch_at], shape[along] = self._axes.batch, self._axes.sequence
        value.shape = ir.Shape(shape)
        return value


def _order(rank: int, along: int, batch_at: int) -> list[int]:
    """How axes [.., B, S, ..] are to be transposed for B to be at `batch_at`."""
    given: list[int | str] = [axis for axis in range(rank) if axis != batch_at]
    given.insert(given.index(along), "batch")
    return [given.index("batch" if axis == batch_at else axis) for axis in range(rank)]


def _counts(draft: Draft, lengths: ir.Value, tokens: ir.Value, keys: ir.Value) -> TokenCounts:
    batch, new = draft.size(tokens, 0), draft.size(tokens, 1)
    zero, one = (draft.node("Constant", [], value_int=i) for i in (0, 1))
    ahead = draft.node("Range", [zero, draft.node("Squeeze", [new]), one])
    column = draft.node("Unsqueeze", [lengths, draft.ints([1])])
    each = draft.node("Add", [column, ahead])
    positions = draft.node("Reshape", [each, draft.ints([-1])])
    return TokenCounts(batch, new, positions, draft.size(positions, 0), keys)
