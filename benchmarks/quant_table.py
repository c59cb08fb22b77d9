"""The rows and the table of `quant_quality.py`."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from quant_contenders import CLASSES
from quant_metrics import TEXTS, Score

TITLE = "## Quality of quantised models, beside other tools"


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: Whose it is.
        group: What it is compared with, one of `CLASSES`.
        version: Tool and version.
        seconds: What its build took.
        cpu: Processor seconds of it, which waiting for others does not enter.
        rss: Largest resident memory of the build, its processes together, bytes.
        size: Bytes of the files that are run.
        scores: Text to what was measured on it.
        reason: Why there are no scores, in its own last words; empty where there are.
    """

    name: str
    group: str
    version: str
    seconds: float = 0.0
    cpu: float = 0.0
    rss: int = 0
    size: int = 0
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    reason: str = ""

    @property
    def worst(self) -> float:
        """The larger perplexity ratio of its texts; infinite where there is none."""
        return max((score.ppl_ratio for score in self.scores.values()), default=float("inf"))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Row:
        """What `dataclasses.asdict` made."""
        scores = {text: Score(**score) for text, score in document["scores"].items()}
        return cls(**{**document, "scores": scores})


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown, one table per class, the best first."""
    parts = []
    for group in CLASSES:
        found = sorted((row for row in rows if row.group == group), key=lambda row: row.worst)
        if found:
            parts.append(f"{group[0].upper()}{group[1:]}:\n\n{_table(found)}")
    return "\n\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    texts = [cell for text in TEXTS for cell in (f"{text}: perplexity x", "KL", "top-1")]
    head = ["", "MB", *texts, "build s", "processor s", "peak MB"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: Row) -> str:
    bold = "**" if row.name.startswith("optc") else ""
    cells = [f"{bold}{row.name}{bold}"]
    if row.reason:
        cells += ["failed", f"{row.reason.replace('|', '/')}", *[""] * (3 * len(TEXTS) - 1)]
    else:
        cells.append(f"{row.size / 1e6:.0f}")
        for text in TEXTS:
            score = row.scores[text]
            cells += [f"{score.ppl_ratio:.3f}", f"{score.kl:.3f}", f"{score.top1:.3f}"]
    cells += [f"{row.seconds:.0f}", f"{row.cpu:.0f}", f"{row.rss / 1e6:.0f}"]
    return f"| {' | '.join(cells)} |"


def section(rows: Sequence[Row], processor: str) -> str:
    """What the documentation says under `TITLE`."""
    date = datetime.date.today().isoformat()
    scores = [score for row in rows for score in row.scores.values()]
    tokens = min((score.tokens for score in scores), default=0)
    error = max((score.top1_error for score in scores), default=0.0)
    versions = sorted({row.version for row in rows})
    return "\n\n".join(
        [
            f"`benchmarks/quant_quality.py`, {date}, {processor}: SmolLM2-135M-Instruct, its "
            "channels permuted so that the 4-bit grid of its checkpoint flatters nobody, beside "
            f"PyTorch in float32; {tokens} tokens of the Python documentation (*docs*) and of a "
            "handbook (*prose*), in sequences of 512, none of whose paragraphs was calibrated "
            "with; everything runs on ONNX Runtime. *KL* in nats; the standard error of *top-1* "
            f"is at most {error:.3f}. *MB*: what is run, tables of embeddings included, which "
            "most other tools leave in float32 (113 MB). *Build s* and *processor s*: "
            "seconds of the build on a machine that others used too, and processor seconds of it; "
            "*peak MB*: its memory, all its processes together.",
            table(rows),
            f"Versions: {', '.join(versions)}.",
        ]
    )
