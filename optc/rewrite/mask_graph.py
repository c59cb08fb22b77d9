"""Nodes that bring several masks to the one that the canonical op takes."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from optc.ir.insert import Insert
from optc.rewrite.movement import Split
from optc.rewrite.scores import MaskTerm, NotFused

__all__ = ["MaskSite", "join_masks", "padding_mask"]

_BOOL = ir.DataType.BOOL


@dataclasses.dataclass(frozen=True)
class MaskSite:
    """What masks of one site must fit.

    Attributes:
        query: [B,Hq,S,D], for S.
        key: [B,Hkv,T,D], for T.
        split: How the leading axes of the site are split into B and H.
        all_keys: Whether `key` is all keys; if not, a past comes before them.
    """

    query: ir.Value
    key: ir.Value
    split: Split
    all_keys: bool = True


def padding_mask(insert: Insert, padding: ir.Value, keeps: str) -> ir.Value:
    """[B,T] as a boolean mask [B,1,1,T].

    Args:
        insert: Where the nodes go.
        padding: The input.
        keeps: Which of its entries keep a key; see `optc.ir.masks.MaskMeaning`.
    """
    kept = padding
    if padding.dtype != _BOOL and keeps == "nonzero":
        kept = insert.node("Cast", [padding], _BOOL, padding.shape, to=int(_BOOL))
    elif padding.dtype != _BOOL:
        op, number = ("Equal", 1) if keeps == "one" else ("Greater", 0)
        limit = insert.number(number, padding.dtype)
        kept = insert.node(op, [padding, limit], _BOOL, padding.shape)
    dims = list(padding.shape or ())
    shape = ir.Shape([dims[0], 1, 1, dims[1]]) if len(dims) == 2 else None
    return insert.node("Unsqueeze", [kept, insert.ints([1, 2])], _BOOL, shape)


def join_masks(
    insert: Insert, terms: list[MaskTerm], site: MaskSite
) -> tuple[ir.Value | None, str]:
    """Join masks into one, full in its last two axes.

    Args:
        insert: Where the nodes go.
        terms: Boolean or additive masks.
        site: What they must fit.

    Returns:
        The mask and its kind, `bool` or `bias`; `(None, "")` when there are no terms.

    Raises:
        NotFused: A mask runs over axes that are not those of the site.
    """
    if not terms:
        return None, ""
    joiner = _Joiner(insert, site)
    dtype = site.query.dtype
    values = joiner.values(terms)
    booleans = [v for v in values if v.dtype == _BOOL]
    biases = [v for v in values if v.dtype != _BOOL]
    mask = booleans[0] if booleans else biases[0]
    for other in booleans[1:]:
        mask = insert.node("And", [mask, other], _BOOL)
    if booleans and biases:
        hidden = insert.number(-math.inf, dtype)
        mask = insert.node("Where", [mask, biases[0], hidden], dtype)
    for other in biases[1:]:
        mask = insert.node("Add", [mask, other], dtype)
    return joiner.full(mask), "bias" if biases else "bool"


def _low(dtype: ir.DataType | None) -> float:
    """A score that hides, which is neither minus infinity nor the lowest of its type."""
    return -3e4 if dtype == ir.DataType.FLOAT16 else -1e30


class _Joiner:
    def __init__(self, insert: Insert, site: MaskSite):
        self.insert = insert
        self.site = site
        self.dtype = site.query.dtype

    def values(self, terms: list[MaskTerm]) -> list[ir.Value]:
        """Masks over [B,H,S,T], boolean or additive in the query's type.

        A finite fill stays finite: kernels give zeros to rows whose mask is minus infinity, or
        the lowest number, throughout, where the original averages all values. Scores that several
        masks replace by a number are replaced once; what several masks add to them adds up.
        """
        replaced = [t for t in terms if t.finite and t.fill > -math.inf]
        values = [self.readable(term) for term in terms if term not in replaced]
        if not replaced:
            return values
        visible = self.plain(replaced[0])
        for term in replaced[1:]:
            visible = self.insert.node("And", [visible, self.plain(term)], _BOOL)
        return [self.number(visible), *values]

    def plain(self, term: MaskTerm) -> ir.Value:
        """One mask, True or zero where visible."""
        value = term.value
        if term.negated:
            value = self.insert.node("Not", [value], _BOOL, value.shape)
        return self.aligned(value, term)

    def number(self, visible: ir.Value) -> ir.Value:
        """A boolean mask as zeros and a number that hides."""
        numbers = [self.insert.number(n, self.dtype) for n in (0.0, _low(self.dtype))]
        return self.insert.node("Where", [visible, *numbers], self.dtype, visible.shape)

    def readable(self, term: MaskTerm) -> ir.Value:
        """One mask as it is joined with others."""
        value = self.plain(term)
        if value.dtype == _BOOL:
            return self.number(value) if term.finite else value
        if value.dtype != self.dtype and self.dtype is not None:
            value = self.insert.node("Cast", [value], self.dtype, value.shape, to=int(self.dtype))
        if term.factor != 1.0:
            factor = self.insert.number(term.factor, self.dtype)
            value = self.insert.node("Mul", [value, factor], self.dtype, value.shape)
        if not term.finite:
            return value
        low = self.insert.number(_low(self.dtype), self.dtype)
        finite = self.insert.node("Max", [value, low], self.dtype, value.shape)
        if not term.guarded:
            return finite
        hidden = self.insert.number(-math.inf, self.dtype)
        endless = self.insert.node("Equal", [value, hidden], _BOOL, value.shape)
        return self.insert.node("Where", [endless, hidden, finite], self.dtype, value.shape)

    def aligned(self, mask: ir.Value, term: MaskTerm) -> ir.Value:
        """From the axes of the scores where it was applied to [B,H,S,T]."""
        if mask.shape is None:
            raise NotFused(f"the shape of its mask '{mask.name}' is not known")
        rank, lead = len(mask.shape), len(self.site.split.lead)
        if rank <= 2 or all(dim == 1 for dim in mask.shape[:-2]):
            return self.insert.lead(mask, 1) if rank > 4 else mask
        view = len(term.view) if term.view is not None else lead + 2
        if view == 4 and (lead == 2 or self.site.split.heads > 1):
            self._check_batch(mask)
            return mask
        if view == 3 and rank == 3:
            return self.insert.lead(mask, self.site.split.heads)
        if view == 5 and term.view is not None:
            return self._unfolded(mask, term.view)
        raise NotFused(f"its mask '{mask.name}' has axes {mask.shape} that the heads have not")

    def _check_batch(self, mask: ir.Value) -> None:
        """A mask of more rows than there are queries would have to repeat the queries."""
        if mask.shape is None or len(mask.shape) < 4 or self.site.query.shape is None:
            return
        if mask.shape[0] != 1 and self.site.query.shape[0] == 1:
            raise NotFused(f"its mask '{mask.name}' has a batch that its queries have not")

    def _unfolded(self, mask: ir.Value, view: tuple[int | str | None, ...]) -> ir.Value:
        """A mask over scores [A,W,H,S,T] of a site [A*W,H,..] or [A,W*H,..]."""
        heads, inner = self.site.split.heads, [view[1], view[2]]
        if not all(isinstance(dim, int) for dim in inner):
            raise NotFused(f"its mask '{mask.name}' runs over {view}")
        middle, last = int(inner[0]), int(inner[1])  # type: ignore[arg-type]
        dims = [1] * (5 - len(mask.shape or ())) + list(mask.shape or ())
        keeps_one = dims[2] == 1 and last == heads
        wanted = [middle, 1 if keeps_one else last]
        outer = self.insert.size(self.site.query, 0, 1)
        share = self.insert.ints([middle * last // heads])
        outer = self.insert.node("Div", [outer, share], ir.DataType.INT64, ir.Shape([1]))
        shape = self.insert.concat([outer, self.insert.ints([*wanted, 1, 1])])
        wide = self.insert.node(
            "Expand", [mask, shape], mask.dtype, ir.Shape([None, *wanted, *dims[-2:]])
        )
        return self.insert.lead(wide, 1 if keeps_one else heads)

    def full(self, mask: ir.Value) -> ir.Value:
        """Expand to [.., S, T] unless the shape says that it is so already."""
        query, key = self.site.query, self.site.key
        if self.site.all_keys and _is_full(mask, query, key):
            return mask
        rows = self.insert.size(query, 2, 3)
        if not self.site.all_keys:  # the op wants all columns of a mask then
            shape = self.insert.concat([self.insert.ints([1, 1]), rows, self.insert.ints([1])])
            return self.insert.node("Expand", [mask, shape], mask.dtype)
        columns = self.insert.size(key, 2, 3)
        shape = self.insert.concat([self.insert.ints([1, 1]), rows, columns])
        return self.insert.node("Expand", [mask, shape], mask.dtype, _full_shape(mask, query, key))


def _full_shape(mask: ir.Value, query: ir.Value, key: ir.Value) -> ir.Shape | None:
    if mask.shape is None or query.shape is None or key.shape is None:
        return None
    lead = [1, 1, *mask.shape[:-2]][-2:] if len(mask.shape) > 1 else [1, 1]
    return ir.Shape([*lead, query.shape[2], key.shape[2]])


def _is_full(mask: ir.Value, query: ir.Value, key: ir.Value) -> bool:
    shapes = mask.shape, query.shape, key.shape
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return False
    last = [*mask.shape[-2:]]  # type: ignore[index]
    wanted = [query.shape[2], key.shape[2]]  # type: ignore[index]
    named = all(isinstance(d, int) or d.value is not None for d in [*last, *wanted])
    return named and last == wanted
