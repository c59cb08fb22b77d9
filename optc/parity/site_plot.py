"""How much each place of a graph costs, as a drawing and a list of the worst.

A pass says so in its details: a list `sites` of objects with `site` and numbers, in graph order.
`cost` is what the outputs move when that place alone is changed, measured unless `costs_measured`
is false; where no place has one, the error of the activation is drawn, or of the weight. Places
that read one activation are measured together and drawn as one bar. Scales are logarithmic: costs
differ by orders of magnitude.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Bar", "Place", "SitePlot", "site_plot"]

WIDTH, HEIGHT = 1000.0, 220.0
"""The area of the bars, in units of the drawing."""

WORST = 20
"""How many places the list has."""

_DECADES = 6
_LEAST = 1.5
_QUANTITIES = {
    "cost": "Drift that each place causes by itself",
    "activation_error": "Relative error of the products at each place",
    "weight_error": "Relative rounding error of each weight",
}
_NOTES = {
    "cost": "How far the outputs move when this place alone is narrow. Colours say how it was "
    "written in the end: what hurts most may have been kept wide.",
    "activation_error": "How far the products move when weights and activations are narrow.",
    "weight_error": "How far the weights move when they are narrow.",
}
_ESTIMATED = (
    "Drift that each place causes by itself, estimated from rounding errors",
    "How far the outputs might move when this place alone is narrow: the graph takes no batch, so "
    "only all places together were measured, and the errors of products or weights say what share "
    "is whose. Colours say how it was written in the end.",
)
_COLUMNS = {
    "cost": "drift by itself",
    "weight_error": "weight error",
    "activation_error": "product error",
}
_WIDTHS = {
    "w4": "4-bit weights",
    "w8a8": "8-bit weights and activations",
    "w8": "8-bit weights",
    "float": "float",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Sites that are changed together, in graph order.

    Attributes:
        sites: Their names.
        width: Such as `w8a8`; empty where the pass names none.
        numbers: The largest of each quantity over the sites, those that are known.
    """

    sites: tuple[str, ...]
    width: str
    numbers: Mapping[str, float]

    @property
    def cells(self) -> dict[str, str]:
        """What a table shows of it, by column."""
        shown = {k: f"{self.numbers[k]:.1e}" if k in self.numbers else "-" for k in _COLUMNS}
        return {_COLUMNS[key]: text for key, text in shown.items()}


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar, from `top` down to `HEIGHT`.

    Attributes:
        x: Its left edge.
        width: Its width.
        top: Its upper edge.
        kind: CSS class of its colour.
        text: What it stands for, in words.
    """

    x: float
    width: float
    top: float
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class SitePlot:
    """The drawing and the list.

    Attributes:
        title: What is drawn, with its unit.
        bars: In graph order.
        ticks: Height and label of each power of ten.
        legend: CSS class, words and number of places of each width, in a fixed order.
        worst: The places with the largest values, the largest first.
        note: What a bar says, in a sentence.
        columns: What is known of some place, for the list.
        unmeasured: How many sites have no value and no bar.
    """

    title: str
    note: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    legend: tuple[tuple[str, str, int], ...]
    worst: tuple[Place, ...]
    columns: tuple[str, ...]
    unmeasured: int


def site_plot(details: Mapping[str, Any]) -> SitePlot | None:
    """What the page draws of a pass.

    Args:
        details: Of the pass, in JSON types, from whoever wrote it.

    Returns:
        None where the details say nothing about sites.
    """
    places = _places(details.get("sites"))
    key = next((k for k in _QUANTITIES if any(k in p.numbers for p in places)), None)
    if key is None:
        return None
    drawn = [place for place in places if key in place.numbers]
    low, high = _decades([place.numbers[key] for place in drawn])
    metric = details.get("drift_metric")
    unit = f", {metric}" if key == "cost" and isinstance(metric, str) else ""
    is_guess = key == "cost" and details.get("costs_measured") is False
    title, note = _ESTIMATED if is_guess else (_QUANTITIES[key], _NOTES[key])
    known = {name for place in drawn for name in place.numbers}
    return SitePlot(
        title=title + unit,
        note=note,
        bars=tuple(_bars(drawn, key, low, high)),
        ticks=tuple((HEIGHT * (high - n) / (high - low), f"1e{n}") for n in range(low, high + 1)),
        legend=tuple(_legend(drawn)),
        worst=tuple(sorted(drawn, key=lambda place: -place.numbers[key])[:WORST]),
        columns=tuple(column for name, column in _COLUMNS.items() if name in known),
        unmeasured=sum(len(place.sites) for place in places if key not in place.numbers),
    )


def _places(sites: Any) -> list[Place]:
    """Sites of one activation, width and cost together, where the first of them is."""
    found: dict[object, list[Mapping[str, Any]]] = {}
    for index, row in enumerate(sites if isinstance(sites, list) else []):
        if not isinstance(row, Mapping) or not isinstance(row.get("site"), str):
            continue
        activation, cost = row.get("activation"), row.get("cost")
        alone = not isinstance(activation, str) or cost is None
        key = index if alone else (activation, str(row.get("width")), repr(cost))
        found.setdefault(key, []).append(row)
    return [_joined(rows) for rows in found.values()]


def _joined(rows: Sequence[Mapping[str, Any]]) -> Place:
    numbers = {
        key: max(values)
        for key in _QUANTITIES
        if (values := [number for row in rows for number in _number(row, key)])
    }
    width = rows[0].get("width")
    names = tuple(str(row["site"]) for row in rows)
    return Place(names, width if isinstance(width, str) else "", numbers)


def _number(row: Mapping[str, Any], key: str) -> Iterable[float]:
    """What a row says of a quantity, if it does: null stands for what is not finite."""
    value = row.get(key, "")
    if value is None:
        yield math.inf
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value) if math.isfinite(value) else math.inf


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Exponents of ten that the scale goes from and to; the smallest values may lie below."""
    logs = [math.log10(value) for value in values if 0 < value < math.inf]
    if not logs:
        return -1, 0
    high = math.ceil(max(logs))
    low = max(math.ceil(min(logs)) - 1, high - _DECADES)
    return min(low, high - 1), high


def _top(value: float, low: int, high: int) -> float:
    """Where a bar of `value` ends; the smallest are still to be seen, the largest are all of it."""
    if value == 0:
        return HEIGHT - _LEAST
    share = 1.0 if value == math.inf else (math.log10(value) - low) / (high - low)
    return HEIGHT - max(_LEAST, share * HEIGHT)


def _bars(places: Sequence[Place], key: str, low: int, high: int) -> Iterable[Bar]:
    step = WIDTH / len(places)
    width = min(step * 0.8, 24.0)
    for index, place in enumerate(places):
        x = index * step + (step - width) / 2
        value = place.numbers[key]
        words = _words(place.width)
        text = f"{', '.join(place.sites)}: {value:.2e}" + (f", {words}" if words else "")
        yield Bar(x, width, _top(value, low, high), _kind(place.width), text)


def _kind(width: str) -> str:
    return f"width-{width}" if width in _WIDTHS else "width-other"


def _words(width: str) -> str:
    return _WIDTHS.get(width, width)


def _legend(places: Sequence[Place]) -> Iterable[tuple[str, str, int]]:
    counts: dict[str, int] = {}
    for place in places:
        counts[place.width] = counts.get(place.width, 0) + 1
    order = [*_WIDTHS, *sorted(width for width in counts if width not in _WIDTHS)]
    for width in order:
        if width in counts:
            yield _kind(width), _words(width) or "not told", counts[width]
