"""Make everything that counts positions follow the lengths of a cache.

First all is found out and drafted, then it is put in at once, or thrown away where something stands
in the way.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import onnx_ir as ir

from optc.core.base import Refusal
from optc.ir.draft import Draft
from optc.ir.flash_attention import DOMAIN, INPUTS, read_spec
from optc.ir.mask_rows import shows_everything
from optc.ir.position_masks import PositionMasks, TokenCounts
from optc.ir.position_uses import PositionUse, data_uses, position_uses
from optc.ir.positions import Positions, PositionSource
from optc.ir.probe import Probe, ProbeFailure, data_inputs
from optc.ir.recount import Recount, TokenAxes

__all__ = ["CachePositions"]

_MASK = INPUTS.index("mask")
_BROADCAST = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Min",
    "Max",
    "Mod",
    "Where",
    "And",
    "Or",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
}


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
        self._recounts: dict[tuple[PositionSource, ...], Recount] = {}
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
        refusals = [r for node in sites if (r := self._prepare_mask(node, most_keys)) is not None]
        for use in position_uses(self._model, self._axes, beside):
            problem = use if isinstance(use, str) else self._prepare_table(use)
            refusals += [Refusal("positions", problem)] if problem else []
        return refusals

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

    def _prepare_mask(self, site: ir.Node, most_keys: int | None) -> Refusal | None:
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
            made = self._masks.moved(mask, most_keys)
        if isinstance(made, str):
            return Refusal(str(site.outputs[0].name), made)
        self.places += made is not None
        self._replacements.append((site, _MASK, made))
        return None

    def _prepare_table(self, use: PositionUse) -> str:
        """Draft one table for its users; why not, otherwise."""
        sources = self._positions.sources(use.value, use.axis)
        if isinstance(sources, str):
            return sources
        if not sources:  # the same at every position, and as long as the call
            return ""
        self.places += 1
        try:
            flat = self._recount(sources).copy(use.value)
            small = Probe(self._model, self._axes.sizes(2)).run(use.value).shape
        except ProbeFailure as failure:
            return f"'{use.value.name}' depends on positions: {failure}"
        for node, index in data_uses(self._model, use.value):
            made = self._by_rows(flat, small, use, node)
            if isinstance(made, str):
                return made
            self._replacements.append((node, index, made))
        return ""

    def _recount(self, sources: tuple[PositionSource, ...]) -> Recount:
        if sources not in self._recounts:
            given = {s.value: s.write(self._draft, self._counts.positions) for s in sources}
            self._recounts[sources] = Recount(self._draft, self._axes, self._counts.flat, given)
        return self._recounts[sources]

    def _by_rows(
        self, flat: ir.Value, small: tuple[int, ...], use: PositionUse, user: ir.Node
    ) -> ir.Value | str:
        """[.., B*S, ..] with the batch as an axis of its own, where the user has it."""
        output, dims = user.outputs[0].shape, list(small)
        batch_at, added = 0, 0
        if user.op_type in _BROADCAST and output is not None:
            names = [d.value if isinstance(d, ir.SymbolicDim) else None for d in output]
            if names.count(self._axes.batch) != 1:
                return f"the batch is no axis where '{use.value.name}' is used"
            batch_at, added = names.index(self._axes.batch), len(output) - len(dims)
        dims, along = [1] * added + dims, use.axis + added
        if added < 0 or batch_at == along or dims[batch_at] != 1:
            return f"'{use.value.name}' depends on positions, and has no axis for the batch"
        key = use.value, len(dims), batch_at
        if key not in self._split:
            self._split[key] = self._split_rows(flat, dims, along, batch_at)
        return self._split[key]

    def _split_rows(self, flat: ir.Value, dims: list[int], along: int, batch_at: int) -> ir.Value:
        parts: list[int | ir.Value] = list(dims)
        parts[along] = self._rows
        del parts[batch_at]
        value = self._draft.node("Reshape", [flat, self._draft.sizes(parts)], flat.dtype)
        order = _order(len(dims), along, batch_at)
        if order == sorted(order):
            return value
        return self._draft.node("Transpose", [value], flat.dtype, perm=order)


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
