"""The arithmetic and the tables of `decode_cpu.py`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Mapping, Sequence

TITLE = "## One prompt on the CPU, beside other runtimes"
MODELS = {
    "smollm2": "SmolLM2-135M (tied tables of 49152 tokens)",
    "llama": "a Llama of 125 M random weights (untied tables of 32000 tokens)",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One prompt by one contender.

    Attributes:
        ttft: Seconds to the first new token.
        decode: Seconds of the tokens after it.
        tokens: New tokens.
        rss: Peak resident memory of the process so far, bytes.
        overhead: Share of `decode` outside the engine, where it is counted.
    """

    ttft: float
    decode: float
    tokens: list[int]
    rss: int
    overhead: float | None = None

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (len(self.tokens) - 1) / self.decode


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender: medians over the rounds, size and peak of memory in bytes, what it said."""

    name: str
    version: str
    exact: bool
    ttft: float
    rate: float
    size: int
    rss: int
    tokens: list[int]
    overhead: float | None = None


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown; the first is what ratios are to."""
    base = rows[0]
    lines = [
        "| | TTFT ms | ratio | decode tokens/s | ratio | files MB | peak memory MB | ratio "
        "| same tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bold = "**" if row.name.startswith("optc") else ""
        cells = [
            f"{bold}{row.name}{bold}",
            f"{row.ttft * 1e3:.0f}",
            f"{base.ttft / row.ttft:.2f}",
            f"{row.rate:.1f}",
            f"{row.rate / base.rate:.2f}",
            f"{row.size / 1e6:.0f}",
            f"{row.rss / 1e6:.0f}",
            f"{row.rss / base.rss:.2f}",
            f"{same(row.tokens, base.tokens)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def same(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = zip(tokens, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(expected)))


def section(
    tables: Mapping[str, Sequence[Row]], options: argparse.Namespace, processor: str
) -> str:
    """What the documentation says under `TITLE`."""
    versions = sorted({row.version for rows in tables.values() for row in rows})
    date = datetime.date.today().isoformat()
    parts = [
        f"`benchmarks/decode_cpu.py`, {date}, {processor}, {options.threads} threads: "
        f"{options.prompt} tokens of prompt, {options.new} greedy tokens, batch 1, medians of "
        f"{options.rounds} interleaved rounds. Float32 unless named otherwise; ratios are to "
        "PyTorch eager, above 1 is faster (for memory: larger). *Files*: what holds graphs and "
        "weights. *Same tokens*: how many of the "
        f"{options.new} come before the first that is not PyTorch's.",
    ]
    for name, rows in tables.items():
        parts += [f"{MODELS[name][0].upper()}{MODELS[name][1:]}:", table(rows)]
    shares = [row.overhead for rows in tables.values() for row in rows if row.overhead is not None]
    if shares:
        parts.append(
            "Outside the engine's own run, optc spends at most "
            f"{max(shares):.1%} of the decoding time (choosing tokens, feeding them)."
        )
    parts.append(f"Versions: {', '.join(versions)}.")
    return "\n\n".join(parts)
