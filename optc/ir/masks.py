"""What an attention mask means: found by evaluating it, not by how it is spelled.

A mask that depends on sizes only (not on the contents of any input) is a function of the query and
key counts. It is evaluated at several counts and compared with the families that attention kernels
know: everything visible, causal, causal within a window. Counts are chosen from the integer
constants of the mask's own sub-graph, so that a window of 4096 is seen and not mistaken for none.

A mask that also depends on one input [B,T] is evaluated with several contents of it, and may mean
the same with padding on top: an entry of the input keeps its key or hides it. Where other entries
than zeros and ones make it no mask at all, the input is taken to hold these only, and that is said;
not if it is also looked up in a table, as token ids are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.bands import visible_band, visible_part
from optc.ir.constants import constant
from optc.ir.probe import Probe, ProbeFailure, ancestors, data_inputs
from optc.ir.thresholds import Sizes, counts_past_thresholds, with_other_rows

__all__ = ["KEEPS", "MaskMeaning", "read_mask"]

_SMALL_COUNTS = (3, 8)
_SEEDS = 4
_LARGE = 30_000
Dim = int | str | None
KEEPS: Mapping[str, Callable[[Array], Array]] = {
    "nonzero": lambda content: content != 0,
    "one": lambda content: content == 1,
    "positive": lambda content: content > 0,
}


@dataclasses.dataclass(frozen=True)
class MaskMeaning:
    """What a mask says.

    Attributes:
        causal: Later keys are hidden.
        window: Number of keys seen up to the query's own, itself included; 0 for all.
        padding: Input [B,T] that hides keys.
        keeps: Which of its entries keep a key: `nonzero`, `one` or `positive`.
        residual: The mask says more than that, and must be handed to the op as it is.
        why: For a residual mask, why it could not be read; for padding, what is assumed of it.
    """

    causal: bool = False
    window: int = 0
    padding: ir.Value | None = None
    keeps: str = "nonzero"
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
        if not found.residual and not self._is_for_any_rows(found, padding, all_sizes[0]):
            return MaskMeaning(residual=True, why="it depends on the number of rows")
        if found.residual or padding is None:
            return found
        return self._with_padding(found, padding, all_sizes)

    def _is_for_any_rows(self, found: MaskMeaning, padding: ir.Value | None, few: Sizes) -> bool:
        rows, columns = self._pair(few)
        band = visible_band(rows, found.window, columns, causal=found.causal)
        for sizes in with_other_rows(self.model, self.mask, few, self.shape.free_symbols()):
            ones = None if padding is None else self._padding(padding, sizes, None)
            part = self._visible(sizes, padding, ones)
            if part is None or not _same(part, band):
                return False
        return True

    def _with_padding(
        self, found: MaskMeaning, padding: ir.Value, all_sizes: list[Sizes]
    ) -> MaskMeaning:
        """`found` with the test that hides keys, if the contents of `padding` do nothing else."""
        small = all_sizes[: len(_SMALL_COUNTS)]
        odd = self._odd_numbers(padding)
        kept = dataclasses.replace(found, padding=padding)
        for test in KEEPS:
            agrees = self._agrees(found, padding, small, odd, test)
            if agrees:
                return dataclasses.replace(kept, keeps=test)
            if agrees is None:  # for other numbers it is neither seen nor hidden
                break
        else:
            return MaskMeaning(residual=True)
        if _is_looked_up(padding) or not self._agrees(found, padding, small, (0, 1), "nonzero"):
            return MaskMeaning(residual=True)
        why = f"'{padding.name}' is taken to hold zeros and ones only"
        return dataclasses.replace(kept, why=why)

    def _agrees(
        self,
        found: MaskMeaning,
        padding: ir.Value,
        all_sizes: list[Sizes],
        numbers: Sequence[int],
        test: str,
    ) -> bool | None:
        """Whether a key is hidden where the test fails; None where the mask is no mask."""
        for sizes, seed in itertools.product(all_sizes, range(_SEEDS)):
            drawn = self._padding(padding, sizes, seed, numbers)
            part = self._visible(sizes, padding, drawn)
            if part is None:
                return None
            rows, columns = self._pair(sizes)
            band = visible_band(rows, found.window, columns, causal=found.causal)
            if not _same(part, band & KEEPS[test](drawn)[:, None, None, :]):
                return False
        return True

    def _odd_numbers(self, padding: ir.Value) -> tuple[int, ...]:
        """Numbers that a comparison in the sub-graph could tell from one."""
        if padding.dtype == ir.DataType.BOOL:
            return (0, 1)
        near = {int(n) for v in ancestors(self.mask) for n in _few_whole_numbers(v)}
        around = {n + step for n in near for step in (-1, 0, 1) if abs(n) < _LARGE}
        return (0, 0, 0, *sorted(around | {-1, 1, 2, 3, _LARGE}))

    def _padding(
        self, padding: ir.Value, sizes: Sizes, seed: int | None, numbers: Sequence[int] = (0, 1)
    ) -> Array:
        shape = Probe(self.model, sizes).shape_of(padding)
        if shape is None:
            raise ProbeFailure(f"the shape of '{padding.name}' is not known")
        dtype = padding.dtype.numpy() if padding.dtype is not None else np.int64
        if seed is None:
            return np.ones(shape, dtype)
        drawn = np.random.default_rng(seed).choice(np.array(numbers), shape)
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


def _is_looked_up(value: ir.Value) -> bool:
    """Whether the input picks rows of a table somewhere."""
    return any(use.node.op_type == "Gather" and use.idx == 1 for use in value.uses())


def _few_whole_numbers(value: ir.Value) -> list[float]:
    array = constant(value)
    if array is None or array.size > 8 or array.dtype.kind not in "if":
        return []
    return [float(n) for n in array.reshape(-1) if np.isfinite(n) and n == int(n)]


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
