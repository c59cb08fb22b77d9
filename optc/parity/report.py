"""The evidence for people: a table in the terminal, a page of HTML.

The page is part of a bundle, whose bytes follow from its inputs alone: it holds no times, no memory
sizes and no dates. It needs nothing from elsewhere and runs no script.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from rich.table import Table

from optc.core.base import Promise
from optc.parity.metrics import Metrics
from optc.parity.policy import Policy
from optc.parity.rows import COLUMNS, Row, cells, evidence, rows_as_json
from optc.parity.site_plot import SitePlot, site_plot

__all__ = ["Row", "evidence", "render_html", "render_table", "rows_as_json"]


_DISPENSABLE = ("cosine", "max abs", "seconds", "KL", "size MB", "rewrites", "top-1")
"""Columns that a narrow terminal does without, the first one first."""


def render_table(rows: Sequence[Row], width: int | None = None) -> Table:
    """The rows for the terminal; rows that violate the policy are red.

    Args:
        rows: The input graph, the graph after each pass, the engine.
        width: Characters in a line, about 110 are needed for everything; columns are left out
            where it is less. All columns when None.
    """
    shown = [cells(row) for row in rows]
    columns = _fitting_columns(shown, width)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        is_pass = column == "pass"
        table.add_column(
            column,
            justify="left" if is_pass else "right",
            no_wrap=not is_pass,
            overflow="fold",
            min_width=5 if is_pass else None,
        )
    for row, texts in zip(rows, shown, strict=True):
        style = "red" if row.violations else ""
        table.add_row(*(texts[column] for column in columns), style=style)
    return table


def _fitting_columns(shown: Sequence[Mapping[str, str]], width: int | None) -> list[str]:
    columns = list(COLUMNS)
    sizes = {c: max(len(c), *(len(texts[c]) for texts in shown)) for c in columns if shown}
    for dispensable in _DISPENSABLE:
        if width is None or sum(sizes[column] + 2 for column in columns) <= width + 2:
            break
        columns.remove(dispensable)
    return columns


def render_html(
    rows: Sequence[Row],
    *,
    title: str,
    pipeline: str,
    source: str,
    note: str = "",
    policy: Policy | None = None,
    violations: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """The report as one self-contained page.

    Args:
        rows: The input graph and the graph after each pass.
        title: Name of the model or bundle.
        pipeline: Pipeline text in effective order.
        source: `Reference.source`.
        note: `Reference.note`.
        policy: What the result is judged by; None when it was only measured.
        violations: Rules broken by a build that was forced; those of the last row when empty.
        facts: More lines for the head of the page, such as the target; no times, no dates.

    Returns:
        HTML text; the same arguments give the same text.
    """
    if rows and not rows[-1].metrics.is_measured:
        policy = None
    checks = policy.checks(rows[-1].metrics) if policy else []
    broken = list(violations) or [c.sentence for c in checks if c.holds is False]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optc.parity", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=title,
        facts={"Pipeline": pipeline, **(facts or {})},
        evidence=evidence(source),
        note=note,
        columns=[column for column in COLUMNS if column != "seconds"],
        table=[(row, cells(row)) for row in rows],
        charts=_charts(rows, policy),
        policy=policy,
        checks=checks,
        verdict=_verdict(policy, broken, source),
        broken=broken,
        passes=[_Section.of(row) for row in rows],
    )


def _verdict(policy: Policy | None, broken: Sequence[str], source: str) -> tuple[str, str]:
    if source == "none":
        return "none", "not measured"
    if policy is None:
        return "none", "measured, not judged"
    return ("bad", "misses its policy") if broken else ("good", "within its policy")


_PROMISES = {
    Promise.EXACT: "exact, outputs move by round-off only",
    Promise.MEASURED: "measured, the change is bounded by the policy",
}


@dataclasses.dataclass(frozen=True)
class _Section:
    """What the page says about one row beside the table."""

    row: Row
    promise: str
    refusals: dict[str, list[str]]
    change: dict[str, str]
    details: dict[str, str]
    lists: dict[str, list[str]]
    plot: SitePlot | None

    @classmethod
    def of(cls, row: Row) -> _Section:
        change = cells(dataclasses.replace(row, metrics=row.change)) if row.change else {}
        shown = {key: change[key] for key in COLUMNS[4:] if key in change}
        refusals: dict[str, list[str]] = {}
        for refusal in row.refusals:
            refusals.setdefault(refusal.reason, []).append(refusal.site)
        lists = {
            k: [_line(v) for v in value] for k, value in row.details.items() if _is_long(value)
        }
        details = {key: _text(value) for key, value in row.details.items() if key not in lists}
        promise, plot = _PROMISES.get(row.promise, row.promise), site_plot(row.details)
        return cls(row, promise, refusals, shown, details, lists, plot)


def _is_long(value: Any) -> bool:
    """A list that would fill the page: it is folded, one entry a line."""
    return isinstance(value, list) and (len(value) > 10 or any(isinstance(v, dict) for v in value))


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class _Bar:
    """One bar: its label, its value in words, its length in 0..1."""

    label: str
    value: str
    length: float


@dataclasses.dataclass(frozen=True)
class _Chart:
    """Horizontal bars over a common scale, perhaps with the policy's limit as a line.

    The drawing is 440 units wide, of which the labels take `label_width`.
    """

    title: str
    bars: list[_Bar]
    limit: float | None
    limit_text: str

    @property
    def label_width(self) -> int:
        return min(200, 16 + 7 * max((len(bar.label) for bar in self.bars), default=0))


def _charts(rows: Sequence[Row], policy: Policy | None) -> list[_Chart]:
    size = [(row.name, row.size / 1e6, f"{row.size / 1e6:.1f}") for row in rows]
    charts = [_chart("Weights after each pass, MB", size, None)]
    if not any(row.metrics.is_measured for row in rows):
        return charts
    key = "kl" if any(row.metrics.kl is not None for row in rows) else "rel_l2"
    name = {"kl": "KL divergence from the reference, nats", "rel_l2": "Relative L2 error"}[key]
    error = [(row.name, _finite(row.metrics, key), cells(row)[_COLUMN_OF[key]]) for row in rows]
    limit = getattr(policy.limits(rows[-1].metrics), key) if policy and rows else None
    return [*charts, _chart(name, error, limit)]


_COLUMN_OF = {"kl": "KL", "rel_l2": "rel L2"}


def _finite(metrics: Metrics, key: str) -> float:
    value: float | None = metrics.as_dict()[key]
    return 0.0 if value is None else value


def _chart(title: str, values: Sequence[tuple[str, float, str]], limit: float | None) -> _Chart:
    top = max([value for _, value, _ in values] + [limit or 0.0], default=0.0) or 1.0
    bars = [_Bar(label, text, value / top) for label, value, text in values]
    at = None if limit is None else limit / top
    return _Chart(title, bars, at, "" if limit is None else f"limit {limit:g}")
