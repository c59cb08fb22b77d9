"""The second half of a build: engine, measurement of the engine, files of the bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

import optc
from optc.api.log import stage
from optc.api.outputs import folder_bytes
from optc.api.prefill import Prefill
from optc.api.samples import without_prompts
from optc.api.sessions import opened
from optc.bundle.layout import PARITY, REFERENCE, REPORT, TOKENIZER
from optc.bundle.manifest import Engine, Evidence, Manifest, installed_versions
from optc.core.context import Progress
from optc.core.errors import ParityError
from optc.core.hooks import peak_rss_bytes
from optc.core.pipeline import Pipeline
from optc.ir.reference import Reference, save_reference
from optc.parity.compare import compare
from optc.parity.policy import Policy
from optc.parity.report import Row, render_html, rows_as_json
from optc.parity.rows import DECODE_ENGINE, ENGINE, PREFILL_ENGINE
from optc.runtime.tokenizer import FILES
from optc.targets.base import Target

__all__ = ["Packer"]

_VERSIONS = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclasses.dataclass
class Packer:
    """Fills a bundle's folder.

    Attributes:
        model: The model file that the build began with.
        target: Runtime to build for.
        pipeline: The passes that ran.
        given: Pipeline text as the user wrote it.
        prefill: The second engine, if there is to be one.
        reference: What to measure against.
        policy: What is acceptable.
        force: Whether to write what is not.
        progress: Told how far long steps are.
        rows: What was measured; the engine's row is appended.
        violations: Rules that do not hold; those of the engine are appended.
        level: How far the engine was tried; see `optc.bundle.manifest.Evidence`.
        is_measured: Whether graphs and the engine are run; the reference goes into the bundle
            either way, for `verify` on another machine.
    """

    model: Path
    target: Target
    pipeline: Pipeline
    given: str
    prefill: Prefill | None
    reference: Reference
    policy: Policy
    force: bool
    progress: Progress
    rows: list[Row]
    violations: list[str]
    level: str = "graph"
    is_measured: bool = True

    def fill(self, lowered: Sequence[ir.Model], folder: Path) -> Manifest:
        """Build engines into `folder`, measure them, add all other files.

        Args:
            lowered: The lowered graph; of two engines, that for prefill last.
            folder: The bundle's.

        Raises:
            ParityError: An engine misses the policy, and `force` is off.
            UnsupportedError: The target cannot build the graph.
        """
        with stage(self.progress, "building the engine"):
            engine = Engine.from_facts(self.target.build(lowered[0], folder))
            if self.prefill is not None:
                facts = self.target.build_prefill(lowered[-1], folder)
                engine = engine.with_prefill(facts, self.prefill.start)
        self._measure(folder, engine)
        if self.reference.samples:
            save_reference(self.reference, folder / REFERENCE)
        self._copy_tokenizer(folder)
        (folder / PARITY).write_text(_json_text(self._parity()), encoding="utf-8")
        (folder / REPORT).write_text(self._report(), encoding="utf-8")
        return Manifest(
            pipeline=self.given,
            order=tuple(self.order),
            options={p.name: dataclasses.asdict(p) for p in self.pipeline.passes},
            versions={"optc": optc.__version__, **installed_versions(_VERSIONS)},
            target=self.target.name,
            engine=engine,
            evidence=Evidence(
                level=self.level,
                source=self.source,
                metrics=self.rows[-1].metrics.as_dict(),
                policy=self.policy.as_dict(),
                passed=self.is_measured and not self.violations,
                forced=bool(self.violations) and self.force,
            ),
            extra={"model": self.model.name, **self._prefill_facts()},
        )

    @property
    def source(self) -> str:
        """What was compared with."""
        return self.reference.source if self.is_measured else "none"

    @property
    def order(self) -> Sequence[str]:
        """Canonical text of each pass, in the order they ran."""
        return self.pipeline.texts

    def _prefill_facts(self) -> dict[str, Any]:
        return {} if self.prefill is None else {"prefill": self.prefill.facts()}

    def _measure(self, folder: Path, engine: Engine) -> None:
        """Run the engines where this machine can, each alone and then as they are used."""
        self.level = "built"
        if not self.is_measured or self.target.unavailable() is not None:
            return
        if self.prefill is not None:
            whole = without_prompts(self.reference)
            self._measure_one(folder, engine, PREFILL_ENGINE, whole, role="prefill")
            self._measure_one(folder, engine, DECODE_ENGINE, whole, role="decode")
        self._measure_one(folder, engine, ENGINE, self.reference)
        self.level = "run"

    def _measure_one(
        self, folder: Path, engine: Engine, name: str, reference: Reference, role: str | None = None
    ) -> None:
        """Run one engine, or all in their roles; judge it by the whole pipeline's limits."""
        size = folder_bytes(folder)
        if role is not None:
            file = engine.roles[role]
            size = sum(path.stat().st_size for path in folder.glob(f"{file}*"))
        with opened(self.target, folder, engine, role=role) as session:
            metrics = compare(session, reference, progress=self.progress)
        broken = tuple(self.policy.violations(metrics))
        row = Row(
            name=name,
            text=f"{name} ({self.target.name})",
            promise=self.policy.promise,
            metrics=metrics,
            size=size,
            peak_rss=peak_rss_bytes(),
            violations=broken,
        )
        if broken and not self.force:
            problem, where = "; ".join(broken), f"{name} for '{self.target.name}'"
            remedy = "see what 'optc bisect' says, or set other limits with --policy"
            raise ParityError(problem, where=where, remedy=remedy)
        self.rows.append(row)
        self.violations += [f"{name}: {sentence}" for sentence in broken]

    def _copy_tokenizer(self, folder: Path) -> None:
        paths = [self.model.parent / name for name in FILES]
        found = [path for path in paths if path.is_file()]
        if found:
            (folder / TOKENIZER).mkdir()
        for path in found:
            shutil.copyfile(path, folder / TOKENIZER / path.name)

    def _parity(self) -> dict[str, Any]:
        return {
            "schema": "optc.parity/1",
            "source": self.source,
            "note": self.reference.note,
            "level": self.level,
            "order": list(self.order),
            "rows": rows_as_json(self.rows, timings=False),
            "policy": self.policy.as_dict(),
            "violations": list(self.violations),
        }

    def _report(self) -> str:
        return render_html(
            self.rows,
            title=self.model.name,
            pipeline=str(self.pipeline),
            source=self.source,
            note=self.reference.note,
            policy=self.policy,
            violations=self.violations,
            facts=self._report_facts(),
        )

    def _report_facts(self) -> dict[str, str]:
        facts = {"Target": self.target.name}
        if self.prefill is not None:
            pipeline, start = self.prefill.pipeline, self.prefill.start
            facts["Prefill"] = f"{pipeline}, for calls with {start} new tokens or more"
        return facts


def _json_text(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n"
