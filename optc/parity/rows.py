"""One row per pass: what it did and how far the graph after it is from the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optc.core.base import Pass, Refusal
from optc.parity.metrics import Metrics

if TYPE_CHECKING:
    from optc.core.hooks import Step

__all__ = [
    "COLUMNS",
    "DECODE_ENGINE",
    "ENGINE",
    "INPUT",
    "PREFILL_ENGINE",
    "Row",
    "cells",
    "evidence",
    "rows_as_json",
]

# Rows that are no pass. Of a bundle with two engines each has its row, and `engine` is what a user
# has: both, each for its calls.
INPUT, ENGINE = "input", "engine"
PREFILL_ENGINE, DECODE_ENGINE = "prefill engine", "decode engine"
_NO_PASSES = (INPUT, ENGINE, PREFILL_ENGINE, DECODE_ENGINE)
NOTHING = "-"

COLUMNS = (
    "pass",
    "rewrites",
    "seconds",
    "size MB",
    "max abs",
    "rel L2",
    "cosine",
    "KL",
    "top-1",
    "ppl ratio",
    "greedy",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """The graph after one pass.

    The first row of a report is the input graph; the last may be the engine that was built.

    Attributes:
        name: Name of the pass, `input` or `engine`; with two engines, `prefill: ` before the names
            of passes over the second graph, `prefill engine` and `decode engine`.
        text: Canonical text of the pass with its options.
        promise: `exact` or `measured`.
        metrics: Distance from the reference.
        change: Distance from the graph before the pass, where the pass is judged by that.
        rewrites: Places rewritten.
        size: Bytes of all weights.
        seconds: Wall-clock seconds inside the pass.
        peak_rss: Peak resident memory of the process so far, in bytes.
        refusals: Places left alone, with reasons.
        notes: Sentences from the pass.
        details: More from the pass; JSON types.
        violations: Rules of the policy that do not hold, each a sentence.
    """

    name: str
    text: str
    promise: str
    metrics: Metrics
    change: Metrics | None = None
    rewrites: int = 0
    size: int = 0
    seconds: float = 0.0
    peak_rss: int = 0
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    violations: tuple[str, ...] = ()

    @classmethod
    def of_pass(cls, p: Pass, step: Step, size: int, prefix: str, metrics: Metrics) -> Row:
        """What is known of a pass without judging it.

        Args:
            p: The pass that ran.
            step: What the pipeline noted of it.
            size: Bytes of all weights after it.
            prefix: What its name and text begin with; empty but for a second engine's passes.
            metrics: Distance from the reference.
        """
        return cls(
            name=f"{prefix}{p.name}",
            text=f"{prefix}{step.text}",
            promise=p.promised,
            metrics=metrics,
            rewrites=step.result.rewrites,
            seconds=step.seconds,
            peak_rss=step.peak_rss,
            size=size,
            refusals=step.result.refusals,
            notes=step.result.notes,
            details=step.result.details,
        )


def rows_as_json(rows: Sequence[Row], *, timings: bool = True) -> list[dict[str, Any]]:
    """Rows as JSON types; the schema only ever grows.

    Each row is an object with the keys

    * `pass`, `text`, `promise`: strings; `rewrites`, `weight_bytes`: integers;
    * `metrics`: an object with the fields of `Metrics`: `max_abs`, `max_rel`, `rel_l2`, `cosine`,
      `kl`, `top1`, `ppl_ratio` are numbers, or null where there is none or it is not finite;
      `greedy_equal` and `greedy_total` are integers or null; `faults`, `notes` lists of strings;
    * `change`: the same object, against the graph before the pass, or null;
    * `refusals`: a list of `{"site": ..., "reason": ...}`; `notes`, `violations`: lists of strings;
    * `details`: an object that depends on the pass;
    * `seconds`, `peak_rss_bytes`: only with `timings`.
    """
    return [_row_as_json(row, timings) for row in rows]


def _row_as_json(row: Row, timings: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "pass": row.name,
        "text": row.text,
        "promise": row.promise,
        "rewrites": row.rewrites,
        "weight_bytes": row.size,
        "metrics": row.metrics.as_dict(),
        "change": row.change.as_dict() if row.change else None,
        "refusals": [dataclasses.asdict(refusal) for refusal in row.refusals],
        "notes": list(row.notes),
        "details": row.details,
        "violations": list(row.violations),
    }
    if timings:
        document |= {"seconds": round(row.seconds, 3), "peak_rss_bytes": row.peak_rss}
    return document


def evidence(source: str) -> str:
    """What the numbers stand on, from `Reference.source`, as a sentence."""
    if source == "pytorch":
        return "Compared against PyTorch: the original model's own answers on real inputs."
    if source == "none":
        return (
            "Nothing was compared, as the build was asked: what the passes did to the numbers is "
            "not known."
        )
    return (
        "Compared against the input graph, on inputs made up for it: there was no "
        "reference from PyTorch, so an error of the export itself would not show."
    )


def cells(row: Row) -> dict[str, str]:
    """What a table shows of one row, by column."""
    m, known = row.metrics, row.metrics.is_measured
    is_pass = row.name not in _NO_PASSES
    greedy = NOTHING if m.greedy_total is None else f"{m.greedy_equal}/{m.greedy_total}"
    return {
        "pass": row.text,
        "rewrites": str(row.rewrites) if is_pass else "",
        "seconds": f"{row.seconds:.1f}" if is_pass else "",
        "size MB": f"{row.size / 1e6:.1f}",
        "max abs": _number(m.max_abs if known else None, ".1e"),
        "rel L2": _number(m.rel_l2 if known else None, ".1e"),
        "cosine": _number(m.cosine if known else None, ".6f"),
        "KL": _number(m.kl, ".1e"),
        "top-1": _number(None if m.top1 is None else 100 * m.top1, ".1f", " %"),
        "ppl ratio": _number(m.ppl_ratio, ".4f"),
        "greedy": greedy,
    }


def _number(value: float | None, form: str, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:{form}}{unit}"
