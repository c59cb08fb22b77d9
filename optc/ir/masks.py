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
    model: ir.Model, mask: ir.Value, query_count: int | str | None, key_count: int | str | None
) -> MaskMeaning:
    """Find out what `mask` means.

    Args:
        model: Model that holds it.
        mask: Boolean (True is visible) or additive, broadcastable to [B,H,S,T].
        query_count: S, or its symbol; None when not known.
        key_count: T, or its symbol.
    """
    if inputs := sorted(str(v.name) for v in data_inputs(mask)):
        return MaskMeaning(residual=True, why=f"it depends on the input {', '.join(inputs)}")
    if query_count is None or key_count is None:
        return MaskMeaning(residual=True, why="the number of queries or keys has no name")
    counts = [*_SMALL_COUNTS, *_counts_from_constants(mask)]
    if isinstance(key_count, int):
        counts = [key_count]
    seen: dict[int, Array] = {}
    try:
        for count in counts:
            sizes = {s: count for s in (query_count, key_count) if isinstance(s, str)}
            part = _evaluate(model, mask, sizes)
            if part is None:
                return MaskMeaning(residual=True, why="it is a bias, not only a mask")
            seen[count] = part
    except ProbeFailure as failure:
        return MaskMeaning(residual=True, why=str(failure))
    if all(part.all() for part in seen.values()):
        return MaskMeaning()
    if query_count != key_count:
        return MaskMeaning(residual=True, why="queries and keys differ in number")
    return _as_band(seen)


def _evaluate(model: ir.Model, mask: ir.Value, counts: dict[str, int]) -> Array | None:
    sizes = {symbol: 2 for value in model.graph.inputs for symbol in _symbols(value)}
    return visible_part(Probe(model, sizes | counts).run(mask))


def _symbols(value: ir.Value) -> list[str]:
    return sorted(value.shape.free_symbols()) if value.shape is not None else []


def _as_band(seen: dict[int, Array]) -> MaskMeaning:
    largest = max(seen)
    width = int(seen[largest][..., -1, :].reshape(-1, seen[largest].shape[-1])[0].sum())
    window = 0 if width == largest else width
    for count, part in seen.items():
        if part.shape[-2:] != (count, count) or (part != visible_band(count, window)).any():
            return MaskMeaning(residual=True, why="its shape is neither causal nor a window")
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


def _counts_from_constants(mask: ir.Value) -> list[int]:
    """Counts just past every integer the sub-graph knows, so that no threshold hides."""
    found: set[int] = set()
    for value in ancestors(mask):
        array = constant(value)
        if array is None or array.size != 1 or array.dtype.kind not in "if":
            continue
        number = float(array.reshape(()))
        if 2 <= abs(number) <= _LARGEST_COUNT and number == int(number):
            found.add(abs(int(number)) + 2)
    return sorted(found)[-4:]
