"""What an attention mask means: found by evaluating it, not by how it is spelled.

A mask that depends on sizes only (not on the contents of any input) is a function of the query and
key counts. It is evaluated at several counts and compared with the families that attention kernels
know: everything visible, causal, causal within a window. Counts are chosen from the integer
constants of the mask's own sub-graph, so that a window of 4096 is seen and not mistaken for none.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.constants import constant
from optc.ir.probe import Probe, ProbeFailure, ancestors, data_inputs

__all__ = ["MaskMeaning", "read_mask", "visible_band", "visible_part"]

_HIDDEN = -1e4  # additive masks use -inf, finfo.min, or -10000 in older BERT exports
_SMALL_COUNTS = (3, 8)
_LARGEST_COUNT = 8200
_FEW = 8  # elements of a value that may be a threshold
_ENDLESS = 2**30  # from here on a number means "to the end"


@dataclasses.dataclass(frozen=True)
class MaskMeaning:
    """What a mask says.

    Attributes:
        causal: Later keys are hidden.
        window: Number of keys seen, itself included; 0 for all.
        residual: The mask says more than that, and must be handed to the op as it is.
        why: For a residual mask, why it could not be read.
    """

    causal: bool = False
    window: int = 0
    residual: bool = False
    why: str = ""


def read_mask(
    model: ir.Model,
    mask: ir.Value,
    query_count: int | str | None,
    key_count: int | str | None,
    *,
    negated: bool = False,
) -> MaskMeaning:
    """Find out what `mask` means.

    Args:
        model: Model that holds it.
        mask: Boolean (True is visible) or additive, broadcastable to [B,H,S,T].
        query_count: S, or its symbol; None when not known.
        key_count: T, or its symbol.
        negated: Whether True is hidden.
    """
    if inputs := sorted(str(v.name) for v in data_inputs(mask)):
        return MaskMeaning(residual=True, why=f"it depends on the input {', '.join(inputs)}")
    if query_count is None or key_count is None:
        return MaskMeaning(residual=True, why="the number of queries or keys has no name")
    seen: dict[tuple[int, int], Array] = {}
    try:
        for pair in _pairs(model, mask, query_count, key_count):
            part = _evaluate(model, mask, dict(zip((query_count, key_count), pair, strict=True)))
            if part is None:
                return MaskMeaning(residual=True, why="it is a bias, not only a mask")
            if _fits(part, pair):  # a constant table ends somewhere, and so does the model
                seen[pair] = ~part if negated else part
    except ProbeFailure as failure:
        return MaskMeaning(residual=True, why=str(failure))
    if seen and all(part.all() for part in seen.values()):
        return MaskMeaning()
    if query_count != key_count:
        return MaskMeaning(residual=True, why="queries and keys differ in number")
    return _as_band({pair[0]: part for pair, part in seen.items()})


def _pairs(
    model: ir.Model, mask: ir.Value, query_count: int | str, key_count: int | str
) -> list[tuple[int, int]]:
    """Numbers of queries and keys to evaluate at; both orders where they may differ."""
    counts = [*_SMALL_COUNTS, *_counts_past_thresholds(model, mask, query_count, key_count)]
    if query_count == key_count:
        same = [query_count] if isinstance(query_count, int) else counts
        return [(count, count) for count in same]
    rows = [query_count] if isinstance(query_count, int) else counts
    columns = [key_count] if isinstance(key_count, int) else counts
    small = min(_SMALL_COUNTS)
    return [(r, c) for r in rows for c in columns if small in (r, c) or r == c]


def _fits(part: Array, pair: tuple[int, int]) -> bool:
    last = part.shape[-2:] if part.ndim > 1 else (1, *part.shape)
    return all(size in (1, count) for size, count in zip(last, pair, strict=True))


def _evaluate(model: ir.Model, mask: ir.Value, counts: dict[int | str, int]) -> Array | None:
    return visible_part(Probe(model, _sizes(model, counts)).run(mask))


def _symbols(value: ir.Value) -> list[str]:
    return sorted(value.shape.free_symbols()) if value.shape is not None else []


def _as_band(seen: dict[int, Array]) -> MaskMeaning:
    odd = MaskMeaning(residual=True, why="its shape is neither causal nor a window")
    if not seen:
        return odd
    largest = max(seen)
    if seen[largest].shape[-2:] != (largest, largest):
        return odd
    width = int(seen[largest][..., -1, :].reshape(-1, largest)[0].sum())
    window = 0 if width == largest else width
    for count, part in seen.items():
        if part.shape[-2:] != (count, count) or (part != visible_band(count, window)).any():
            return odd
    return MaskMeaning(causal=True, window=window)


def visible_band(count: int, window: int) -> Array:
    """The causal mask [count, count], within `window` keys when that is not 0."""
    i, j = np.arange(count)[:, None], np.arange(count)[None]
    return (j <= i) & ((j > i - window) | (window == 0))


def visible_part(mask: Array) -> Array | None:
    """A mask as booleans, True where visible; None when it holds anything but 0 and hidden."""
    if mask.dtype == np.bool_:
        return mask
    hidden = mask <= _HIDDEN
    return ~hidden if np.all(hidden | (mask == 0)) else None


def _counts_past_thresholds(
    model: ir.Model, mask: ir.Value, query_count: int | str, key_count: int | str
) -> list[int]:
    """Counts just past every whole number that the sub-graph compares with.

    A threshold is any small value that is the same at two lengths, written or computed. The last
    count is past their sum, for thresholds that are taken one after the other.

    Raises:
        ProbeFailure: A threshold is larger than what is evaluated here.
    """
    found: set[int] = set()
    for value in ancestors(mask):
        found |= _whole_numbers(model, value, query_count, key_count)
    if found and max(found) > _LARGEST_COUNT:
        raise ProbeFailure(f"its sub-graph holds {max(found)}, too large a length to try")
    together = min(sum(found), _LARGEST_COUNT)
    return sorted({n + 2 for n in [*sorted(found)[-3:], together] if n})


def _whole_numbers(
    model: ir.Model, value: ir.Value, query_count: int | str, key_count: int | str
) -> set[int]:
    contents = [constant(value)]
    if value.producer() is not None and contents[0] is None:
        if value.shape is not None and len(value.shape) > 1:
            return set()
        try:
            contents = [
                Probe(model, _sizes(model, {query_count: count, key_count: count})).run(value)
                for count in _SMALL_COUNTS
            ]
        except ProbeFailure:
            return set()
    first, last = contents[0], contents[-1]
    if first is None or last is None or first.size > _FEW or first.dtype.kind not in "if":
        return set()
    if first.shape != last.shape or not (first == last).all():
        return set()
    numbers = [abs(float(n)) for n in first.reshape(-1) if n > _HIDDEN]
    return {int(n) for n in numbers if 2 <= n < _ENDLESS and n == int(n)}


def _sizes(model: ir.Model, counts: dict[int | str, int]) -> dict[str, int]:
    """Sizes to evaluate at: these counts where they have a symbol, 2 for every other symbol."""
    sizes = {symbol: 2 for value in model.graph.inputs for symbol in _symbols(value)}
    return sizes | {symbol: n for symbol, n in counts.items() if isinstance(symbol, str)}
