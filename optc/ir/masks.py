"""What an attention mask means: found by evaluating it, not by how it is spelled.

A mask that depends on sizes only (not on the contents of any input) is a function of the query and
key counts. It is evaluated at several counts and compared with the families that attention kernels
know: everything visible, causal, causal within a window. Counts are chosen from the integer
constants of the mask's own sub-graph, so that a window of 4096 is seen and not mistaken for none.

A mask that also depends on one input [B,T] of ones and zeros is evaluated with several of them, and
may mean the same with padding on top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.probe import Probe, ProbeFailure, data_inputs
from optc.ir.thresholds import HIDDEN, Sizes, counts_past_thresholds

__all__ = ["MaskMeaning", "read_mask", "visible_band", "visible_part"]

_SMALL_COUNTS = (3, 8)
_SEEDS = 4
Dim = int | str | None


@dataclasses.dataclass(frozen=True)
class MaskMeaning:
    """What a mask says.

    Attributes:
        causal: Later keys are hidden.
        window: Number of keys seen up to the query's own, itself included; 0 for all.
        padding: Input [B,T] whose zeros hide keys.
        residual: The mask says more than that, and must be handed to the op as it is.
        why: For a residual mask, why it could not be read.
    """

    causal: bool = False
    window: int = 0
    padding: ir.Value | None = None
    residual: bool = False
    why: str = ""


def read_mask(
    model: ir.Model,
    mask: ir.Value,
    query_count: Dim,
    key_count: Dim,
    *,
    negated: bool = False,
    gate: bool = False,
    factor: float = 1.0,
) -> MaskMeaning:
    """Find out what `mask` means.

    Args:
        model: Model that holds it.
        mask: Boolean (True is visible) or additive, broadcastable to [B,H,S,T].
        query_count: S, a number or an expression over symbols; None when not known.
        key_count: T, likewise.
        negated: Whether True is hidden.
        gate: Whether scores are multiplied by it: ones are visible, zeros hidden.
        factor: What an additive mask is multiplied by before it is added.
    """
    inputs = sorted(data_inputs(mask), key=lambda v: str(v.name))
    depends = f"it depends on the input {', '.join(str(v.name) for v in inputs)}"
    if query_count is None or key_count is None:
        return MaskMeaning(residual=True, why=(inputs and depends) or "a count has no name")
    if len(inputs) > 1 or (inputs and not _is_padding(inputs[0], key_count)):
        return MaskMeaning(residual=True, why=depends)
    reader = _Reader(model, mask, (query_count, key_count), negated, gate, factor)
    try:
        meaning = reader.read(inputs[0] if inputs else None)
    except ProbeFailure as failure:
        return MaskMeaning(residual=True, why=str(failure))
    return dataclasses.replace(meaning, why=depends) if meaning.residual and inputs else meaning


def _is_padding(value: ir.Value, key_count: Dim) -> bool:
    """Whether it may be [B,T]; exporters give its length a name of its own at times."""
    kinds = {ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.INT32}
    if value.shape is None or len(value.shape) != 2 or value.dtype not in kinds:
        return False
    length = value.shape[1]
    return isinstance(length, ir.SymbolicDim) or length == key_count


class _Reader:
    """Evaluates one mask at several sizes."""

    def __init__(
        self,
        model: ir.Model,
        mask: ir.Value,
        counts: tuple[int | str, int | str],
        negated: bool,
        gate: bool,
        factor: float,
    ):
        self.model = model
        self.mask = mask
        self.shape = ir.Shape(counts)
        self.negated = negated
        self.gate = gate
        self.factor = factor

    def read(self, padding: ir.Value | None) -> MaskMeaning:
        """The meaning, with `padding` as the one input that it may depend on."""
        seen: dict[tuple[int, int], Array] = {}
        all_sizes = [self._with_length(sizes, padding) for sizes in self._sizes(padding)]
        for sizes in all_sizes:
            ones = None if padding is None else self._padding(padding, sizes, None)
            part = self._visible(sizes, padding, ones)
            if part is None:
                return MaskMeaning(residual=True, why="it is a bias, not only a mask")
            pair = self._pair(sizes)
            if _fits(part, pair):  # a constant table ends somewhere, and so does the model
                seen[pair] = part
        found = _as_band(seen)
        if found.residual or padding is None:
            return found
        return self._with_padding(found, padding, all_sizes)

    def _with_padding(
        self, found: MaskMeaning, padding: ir.Value, all_sizes: list[Sizes]
    ) -> MaskMeaning:
        """`found` if zeros in `padding` hide their key, and do nothing else."""
        for sizes in all_sizes[: len(_SMALL_COUNTS)]:
            for seed in range(_SEEDS):
                kept = self._padding(padding, sizes, seed)
                part = self._visible(sizes, padding, kept)
                rows, columns = self._pair(sizes)
                band = visible_band(rows, found.window, columns, causal=found.causal)
                expected = band & kept.astype(bool)[:, None, None, :]
                if part is None or not _same(part, expected):
                    return MaskMeaning(residual=True)
        return dataclasses.replace(found, padding=padding)

    def _padding(self, padding: ir.Value, sizes: Sizes, seed: int | None) -> Array:
        shape = Probe(self.model, sizes).shape_of(padding)
        if shape is None:
            raise ProbeFailure(f"the shape of '{padding.name}' is not known")
        dtype = padding.dtype.numpy() if padding.dtype is not None else np.int64
        if seed is None:
            return np.ones(shape, dtype)
        drawn = np.random.default_rng(seed).integers(0, 2, shape)
        drawn[:, 0] = seed % 2
        return drawn.astype(dtype)

    def _visible(self, sizes: Sizes, padding: ir.Value | None, kept: Array | None) -> Array | None:
        given = {padding: kept} if padding is not None and kept is not None else None
        content = Probe(self.model, sizes).run(self.mask, given)
        if self.gate:
            return content == 1 if np.isin(content, (0, 1)).all() else None
        part = visible_part(content if content.dtype == np.bool_ else content * self.factor)
        return part if part is None or not self.negated else ~part

    def _pair(self, sizes: Sizes) -> tuple[int, int]:
        rows, columns = self.shape.evaluate(sizes)
        if not isinstance(rows, int) or not isinstance(columns, int):
            raise ProbeFailure("the number of queries or keys is not known")
        return rows, columns

    def _sizes(self, padding: ir.Value | None) -> list[Sizes]:
        """Sizes to evaluate at: small ones first, then past every threshold."""
        given = {padding: None} if padding is not None else {}
        free = sorted(self.shape.free_symbols())
        others = {s: 2 for v in self.model.graph.inputs if v.shape for s in v.shape.free_symbols()}
        if not free:
            return [others]
        small = [others | dict.fromkeys(free, n) for n in _SMALL_COUNTS]
        past = counts_past_thresholds(self.model, self.mask, small, given)
        counts = [*_SMALL_COUNTS, *past]
        if len(free) == 1:
            return [others | {free[0]: n} for n in counts]
        least = min(_SMALL_COUNTS)
        pairs = [(r, c) for r in counts for c in counts if least in (r, c) or r == c]
        return [others | dict.fromkeys(free, r) | {free[-1]: c} for r, c in pairs]

    def _with_length(self, sizes: Sizes, padding: ir.Value | None) -> Sizes:
        """The length of the padding is that of the keys, whatever its name."""
        length = padding.shape[1] if padding is not None and padding.shape is not None else None
        name = length.value if isinstance(length, ir.SymbolicDim) else None
        if name is None or name in self.shape.free_symbols():
            return sizes
        return sizes | {name: self._pair(sizes)[1]}


def _fits(part: Array, pair: tuple[int, int]) -> bool:
    last = (1, 1, *part.shape)[-2:]
    return all(size in (1, count) for size, count in zip(last, pair, strict=True))


def _same(part: Array, expected: Array) -> bool:
    try:
        both = np.broadcast_arrays(part, expected)
    except ValueError:
        return False
    return bool((both[0] == both[1]).all())


def _as_band(seen: Mapping[tuple[int, int], Array]) -> MaskMeaning:
    if seen and all(part.all() for part in seen.values()):
        return MaskMeaning()
    odd = MaskMeaning(residual=True, why="its shape is neither causal nor a window")
    if not seen:
        return odd
    rows, columns = max(seen, key=lambda pair: pair[1])
    if seen[rows, columns].shape[-2:] != (rows, columns):
        return odd
    width = int(seen[rows, columns][..., -1, :].reshape(-1, columns)[0].sum())
    window = 0 if width == columns else width
    for causal in (True, False):
        bands = {pair: visible_band(pair[0], window, pair[1], causal=causal) for pair in seen}
        if all(_is_band(part, bands[pair]) for pair, part in seen.items()):
            return MaskMeaning(causal=causal, window=window)
    return odd


def _is_band(part: Array, band: Array) -> bool:
    return part.shape[-2:] == band.shape and bool((part == band).all())


def visible_band(count: int, window: int, keys: int | None = None, *, causal: bool = True) -> Array:
    """The causal mask [count, keys], aligned at the end, within `window` keys when not 0."""
    total = count if keys is None else keys
    last, j = np.arange(count)[:, None] + total - count, np.arange(total)[None]
    return ((j <= last) | (not causal)) & ((j > last - window) | (window == 0))


def visible_part(mask: Array) -> Array | None:
    """A mask as booleans, True where visible; None when it holds anything but 0 and hidden."""
    if mask.dtype == np.bool_:
        return mask
    hidden = mask <= HIDDEN
    return ~hidden if np.all(hidden | (mask == 0)) else None
