"""What `build` and `verify` answer, for programs and for people."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from optc.parity.metrics import Metrics
from optc.parity.policy import Check, Policy
from optc.parity.report import Row, rows_as_json
from optc.targets.speed import Speed

__all__ = ["BuildResult", "VerifyResult", "evidence_text"]

_ORACLES = {"pytorch": "against PyTorch", "graph": "against the input graph"}
_LEVELS = {
    "none": "not measured",
    "graph": "graph run",
    "built": "engine built",
    "run": "engine run",
}


def evidence_text(level: str, source: str) -> str:
    """The level of evidence in words: `against PyTorch, engine run`."""
    return f"{_ORACLES.get(source, 'against nothing (no answers were compared)')}, {_LEVELS[level]}"


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What was built, and what is known about it.

    Attributes:
        model: The model file.
        bundle: The bundle's folder.
        bytes: Size of all its files.
        target: Runtime it was built for.
        pipeline: Pipeline text as given.
        order: Canonical text of the passes in the order they ran.
        prefill: `pipeline`, `order` and `from` of the engine for prefill, if it has one.
        source: What it was compared with: `pytorch`, `graph`, or `none`.
        level: How far it was tried; see `optc.bundle.manifest.Evidence`.
        rows: One for the input graph, one per pass, one for the engine.
        policy: The limits it was judged by.
        violations: Rules that do not hold, each a sentence; only with `force` can there be any.
        signed: Whether the bundle carries a signature.
        seconds: Wall-clock seconds of the whole build.
        speed: Quantised products beside float on this machine; the bundle does not hold it.
    """

    model: Path
    bundle: Path
    bytes: int
    target: str
    pipeline: str
    order: tuple[str, ...]
    prefill: dict[str, Any] | None
    source: str
    level: str
    rows: tuple[Row, ...]
    policy: Policy
    violations: tuple[str, ...]
    signed: bool
    seconds: float
    speed: tuple[Speed, ...] = ()

    @property
    def evidence(self) -> str:
        """The level of evidence in words."""
        return evidence_text(self.level, self.source)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What no row, or only the first ones, could be judged on, each a sentence."""
        return tuple(dict.fromkeys(note for row in self.rows for note in row.metrics.notes))

    def as_json(self) -> dict[str, Any]:
        """The document `optc.build/1`; see `docs/json.md`."""
        return {
            "schema": "optc.build/1",
            "model": str(self.model),
            "bundle": str(self.bundle),
            "bytes": self.bytes,
            "target": self.target,
            "pipeline": self.pipeline,
            "order": list(self.order),
            "prefill": self.prefill,
            "evidence": {"source": self.source, "level": self.level, "text": self.evidence},
            "rows": rows_as_json(self.rows),
            "policy": self.policy.as_dict(),
            "passed": None if self.source == "none" else not self.violations,
            "violations": list(self.violations),
            "signed": self.signed,
            "seconds": round(self.seconds, 3),
            "speed": [speed.as_json() for speed in self.speed],
        }


@dataclasses.dataclass(frozen=True)
class VerifyResult:
    """What a bundle's engine does on this machine.

    Attributes:
        bundle: The bundle's folder.
        target: Runtime it was built for.
        order: Canonical text of the passes it went through.
        source: What it was compared with: `pytorch`, `graph`, or `none`: it carries no samples.
        level: `run`; `built` where the engine was opened and nothing else.
        metrics: What was measured now.
        at_build: What its manifest says was measured when it was built.
        policy: The limits it was judged by.
        checks: Every rule, held against what was measured now.
        signature: `valid`; `not checked` if no key was given; `none` if it is not signed.
        seconds: Wall-clock seconds.
    """

    bundle: Path
    target: str
    order: tuple[str, ...]
    source: str
    level: str
    metrics: Metrics
    at_build: dict[str, Any]
    policy: Policy
    checks: tuple[Check, ...]
    signature: str
    seconds: float

    @property
    def violations(self) -> tuple[str, ...]:
        """Rules that do not hold, each a sentence."""
        return tuple(check.sentence for check in self.checks if check.holds is False)

    @property
    def evidence(self) -> str:
        """The level of evidence in words."""
        return evidence_text(self.level, self.source)

    def as_json(self) -> dict[str, Any]:
        """The document `optc.verify/1`; see `docs/json.md`."""
        return {
            "schema": "optc.verify/1",
            "bundle": str(self.bundle),
            "target": self.target,
            "order": list(self.order),
            "evidence": {"source": self.source, "level": self.level, "text": self.evidence},
            "metrics": self.metrics.as_dict(),
            "at_build": self.at_build,
            "policy": self.policy.as_dict(),
            "checks": [_check(check) for check in self.checks],
            "passed": None if self.source == "none" else not self.violations,
            "violations": list(self.violations),
            "signature": self.signature,
            "seconds": round(self.seconds, 3),
        }


def _check(check: Check) -> dict[str, Any]:
    row = dataclasses.asdict(check)
    if check.value is not None and check.value != check.value:
        row["value"] = None  # JSON has no NaN
    return row
