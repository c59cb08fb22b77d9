"""Whether quantised products pay on this machine: what was timed, the verdict, and a sentence.

Kinds of products are timed in small graphs of their own, in turn with the same products in float.
What else runs on a machine makes times longer, never shorter, so least times are compared: of the
whole trial, and of each of its stretches, which must nearly all agree before anything is called
slower.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from optc.rewrite.quant_grid import Grid

__all__ = ["Instead", "Kind", "Speed", "Timing", "speed_notes"]

_MUCH = 1.1  # less is not worth a note
_NEARLY_ALL = 0.75  # of the stretches must be slower: where nothing is, half of them are by chance
_STRETCHES = (
    8  # so few that each has pairs enough for a least time, so many that 3/4 says something
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Products that read one activation and are quantised alike.

    Attributes:
        inner: K, the length that they sum over.
        outers: N of each, largest first.
        grid: Grid of their weights.
        rounding: How the activation is rounded: `tensor`, `token`, or not at all (empty).
        is_tied: Whether rows are looked up in the weight, too.
        dtype: Element type of the activation and of the result.
    """

    inner: int
    outers: tuple[int, ...]
    grid: Grid
    rounding: str = ""
    is_tied: bool = False
    dtype: ir.DataType = ir.DataType.FLOAT

    @property
    def elements(self) -> int:
        """Elements of all the weights."""
        return self.inner * sum(self.outers)

    @property
    def shape(self) -> str:
        """`1536x576`; products of one activation in brackets, `576x(1536+1536)`."""
        channels = "+".join(map(str, self.outers))
        return f"{self.inner}x{channels if len(self.outers) == 1 else f'({channels})'}"

    @property
    def form(self) -> str:
        """Such as `int4 in groups of 32`, or `int8, activations int8 by token`."""
        width = "E4M3" if self.grid.is_float else f"int{self.grid.bits}"
        group = f" in groups of {self.grid.group}" if self.grid.group else ""
        way = {"": "", "tensor": f", activations {width}", "token": ", activations int8 by token"}
        return f"{width}{group}{way[self.rounding]}"


@dataclasses.dataclass(frozen=True)
class Timing:
    """A kind beside float, for one number of tokens.

    Attributes:
        tokens: Rows of the activation.
        ratio: Least time over the least time in float; above 1 is slower.
        share: Share of the stretches of the trial in which it was slower.
    """

    tokens: int
    ratio: float
    share: float

    @classmethod
    def of(cls, tokens: int, pairs: Sequence[tuple[float, float]]) -> Timing:
        """From pairs of seconds, in float and quantised, in the order they were taken."""
        count = min(len(pairs), _STRETCHES)
        bounds = [len(pairs) * number // count for number in range(count + 1)]
        ratios = [_ratio(pairs[first:last]) for first, last in itertools.pairwise(bounds)]
        return cls(tokens, _ratio(pairs), sum(ratio > 1 for ratio in ratios) / count)

    @property
    def is_slower(self) -> bool:
        """Slower than in float by more than a tenth, and by more than noise."""
        return self.ratio > _MUCH and self.share > _NEARLY_ALL

    @property
    def is_faster(self) -> bool:
        """The other way round."""
        return self.ratio < 1 / _MUCH and self.share < 1 - _NEARLY_ALL


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Least time quantised over least time in float."""
    return min(quantised for _, quantised in pairs) / min(plain for plain, _ in pairs)


@dataclasses.dataclass(frozen=True)
class Instead:
    """A scheme that was faster than float where the kind was slower.

    Attributes:
        scheme: Its name.
        ratio: Its largest time over the time in float, of the numbers of tokens that matter.
    """

    scheme: str
    ratio: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """How one kind of products does on this machine.

    Attributes:
        kind: The kind.
        count: How often it is in the graph.
        timings: One for each number of tokens for which float takes long enough to be timed.
        instead: What to try; None where nothing is slower, or nothing tried was faster, and where
            another of the same `trouble` was tried.
    """

    kind: Kind
    count: int
    timings: tuple[Timing, ...]
    instead: Instead | None = None

    @property
    def products(self) -> int:
        """How many products that are."""
        return self.count * len(self.kind.outers)

    @property
    def slower(self) -> tuple[int, ...]:
        """Numbers of tokens for which it is slower than in float."""
        return tuple(timing.tokens for timing in self.timings if timing.is_slower)

    def among(self, calls: range) -> Speed:
        """The same for some numbers of tokens only."""
        timings = tuple(timing for timing in self.timings if timing.tokens in calls)
        instead = self.instead if any(timing.is_slower for timing in timings) else None
        return dataclasses.replace(self, timings=timings, instead=instead)

    @property
    def trouble(self) -> tuple[object, ...]:
        """Equal for kinds of one form that are slower for the same numbers of tokens."""
        return self.kind.form, self.kind.is_tied, self.slower

    def as_json(self) -> dict[str, Any]:
        """An element of `speed` in `optc.build/1`; see `docs/json.md`."""
        return {
            "products": self.products,
            "shape": self.kind.shape,
            "form": self.kind.form,
            "speedups": {str(t.tokens): round(1 / t.ratio, 2) for t in self.timings},
            "slower_for": list(self.slower),
            "instead": self.instead.scheme if self.instead else None,
        }


def speed_notes(speeds: Sequence[Speed]) -> list[str]:
    """One sentence for all that is slower in the same way; none where nothing is."""
    groups: dict[object, list[Speed]] = {}
    for speed in speeds:
        if speed.slower:
            groups.setdefault(speed.trouble, []).append(speed)
    return [_note(group) for group in groups.values()]


def _note(group: Sequence[Speed]) -> str:
    first = group[0]
    count = sum(speed.products for speed in group)
    products = "1 product" if count == 1 else f"{count} products"
    shapes = ", ".join(dict.fromkeys(speed.kind.shape for speed in group))
    timings = [timing for speed in group for timing in speed.timings]
    slow = [_times(timings, tokens, "slower") for tokens in first.slower]
    text = f"{products} ({shapes}; {first.kind.form}) {'is' if count == 1 else 'are'} "
    text += f"{' and '.join(slow)} than in float on this machine"
    others = dict.fromkeys(t.tokens for t in timings if t.tokens not in first.slower)
    fast = [n for n in others if all(t.is_faster for t in timings if t.tokens == n)]
    if fast:
        text += f" ({' and '.join(_times(timings, tokens, 'faster') for tokens in fast)})"
    for instead in (speed.instead for speed in group if speed.instead):
        scheme, times = instead.scheme, 1 / instead.ratio
        text += f"; quant:scheme={scheme} is {times:.1f}x faster than float there"
    return text


def _times(timings: Sequence[Timing], tokens: int, word: str) -> str:
    """`1.2 to 1.4x slower for 128 tokens`."""
    ratios = [timing.ratio for timing in timings if timing.tokens == tokens]
    span = _span(ratios if word == "slower" else [1 / ratio for ratio in ratios])
    return f"{span}x {word} for {'one token' if tokens == 1 else f'{tokens} tokens'}"


def _span(numbers: Sequence[float]) -> str:
    least, most = f"{min(numbers):.1f}", f"{max(numbers):.1f}"
    return least if least == most else f"{least} to {most}"
