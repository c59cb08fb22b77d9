"""Copies of values that depend on sizes only, as they would be for another number of tokens.

Tables of positions, masks and biases are computed from the number S of tokens of a call. With a
cache they are wanted for others: for the keys of the cache, or for tokens at chosen positions. A
copy repeats the nodes behind a value with S taken from elsewhere, a batch of 1, and some values
replaced. It is what a probe evaluates at those sizes, as nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from optc.ir.draft import Draft
from optc.ir.probe import ProbeFailure, fixed_values

__all__ = ["Recount", "TokenAxes"]

_OTHER = 53


@dataclasses.dataclass(frozen=True)
class TokenAxes:
    """Names of the axes of the token input [B,S].

    Attributes:
        batch: Symbol of B.
        sequence: Symbol of S.
        batches: Other names of B, on inputs beside the tokens.
        others: Other free axes, such as the length of what an encoder reads.
    """

    batch: str
    sequence: str
    batches: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def sizes(self, tokens: int, batch: int = 1) -> dict[str, int]:
        """Sizes for a probe; axes that are not about the tokens have one that is no other's."""
        beside = dict.fromkeys(self.others, _OTHER) | dict.fromkeys(self.batches, batch)
        return beside | {self.batch: batch, self.sequence: tokens}

    def is_count(self, dim: int | ir.SymbolicDim) -> bool:
        """Whether a size is S, at least while S is small: tables of a model end somewhere."""
        if isinstance(dim, int) or dim.value is None:
            return False
        shape = ir.Shape([dim])
        return all(list(shape.evaluate(self.sizes(count))) == [count] for count in (3, 7))


class Recount:
    """Copies values of one model for one number of tokens.

    Args:
        draft: Where the nodes go.
        axes: Axes of the token input.
        count: The number of tokens, int64 [1].
        given: What takes the place of some values.
    """

    def __init__(
        self,
        draft: Draft,
        axes: TokenAxes,
        count: ir.Value,
        given: Mapping[ir.Value, ir.Value] | None = None,
    ):
        self._draft = draft
        self._axes = axes
        self._count = count
        self._copies: dict[ir.Value, ir.Value] = dict(given or {})
        self._fixed = fixed_values(draft.model)

    def copy(self, value: ir.Value) -> ir.Value:
        """The value for that number of tokens and a batch of 1.

        Raises:
            ProbeFailure: It depends on data, or on a size that is none of the token input.
        """
        if value in self._copies:
            return self._copies[value]
        if value not in self._fixed:
            raise ProbeFailure(f"it depends on the data in '{value.name}'")
        node = value.producer()
        if node is None or not self._fixed[value]:
            return value
        if any(
            attr.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attr in _of(node)
        ):
            raise ProbeFailure(f"it depends on a {node.op_type} of sizes")
        size = self._size(node)
        if size is not None:
            self._copies[value] = size
            return size
        made = self._draft.again(node, [v and self.copy(v) for v in node.inputs])
        self._copies |= dict(zip(node.outputs, made.outputs, strict=True))
        return self._copies[value]

    def _size(self, node: ir.Node) -> ir.Value | None:
        """What a `Shape` gives, read from the recorded sizes; None if the value is to be copied."""
        measured = node.inputs[0]
        if node.op_type != "Shape" or measured is None or measured in self._copies:
            return None
        dims = list(measured.shape or ())
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(dims))
        parts = [self._dim(dim) for dim in dims[start:end]]
        known = [part for part in parts if part is not None]
        if parts and len(known) == len(parts):
            return self._draft.sizes(known)
        if measured in self._fixed:
            return None
        raise ProbeFailure(f"it depends on the size of '{measured.name}'")

    def _dim(self, dim: int | ir.SymbolicDim) -> int | ir.Value | None:
        if isinstance(dim, int):
            return dim
        if dim.value in {self._axes.batch, *self._axes.batches}:
            return 1
        return self._count if dim.value == self._axes.sequence else None


def _of(node: ir.Node) -> list[ir.Attr]:
    return list(node.attributes.values())
