"""`package`: a folder that another runtime of generators runs, from a bundle."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optc.api.log import stage
from optc.api.outputs import folder_bytes, new_folder
from optc.api.package_facts import Facts, read_facts
from optc.api.package_genai import for_genai
from optc.api.package_optimum import for_optimum
from optc.api.sessions import target_of
from optc.bundle.read import read_bundle
from optc.core.context import Progress, no_progress
from optc.core.errors import UnsupportedError, UsageError
from optc.ir.load import load_model
from optc.ir.save import save_model
from optc.targets.ort import ENGINE
from optc.targets.ort_session import OrtSession

__all__ = ["ECOSYSTEMS", "PackageResult", "package"]

MODEL = "model.onnx"
_WITHOUT_PREFILL = (
    "it has the engine that decodes, and no other: it reads prompts with that one, too"
)
ECOSYSTEMS: dict[str, Callable[[ir.Model, Facts, Path], None]] = {
    "genai": for_genai,
    "optimum": for_optimum,
}
"""What makes the folder of each runtime: changes the engine in place, writes the other files."""


@dataclasses.dataclass(frozen=True)
class PackageResult:
    """A folder that was written.

    Attributes:
        bundle: The bundle.
        ecosystem: Runtime that it is for.
        folder: Where it lies.
        context: Most tokens of a sequence, prompt included, that it says the model takes.
        seconds: The whole command.
        notes: What is not in it, each a sentence.
    """

    bundle: Path
    ecosystem: str
    folder: Path
    context: int
    seconds: float
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document `optc.package/1`; see `docs/json.md`."""
        return {
            "schema": "optc.package/1",
            "bundle": str(self.bundle),
            "for": self.ecosystem,
            "folder": str(self.folder),
            "files": sorted(file.name for file in self.folder.iterdir()),
            "bytes": folder_bytes(self.folder),
            "context": self.context,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def package(
    bundle: str | Path,
    ecosystem: str,
    out: str | Path,
    *,
    context: int | None = None,
    progress: Progress = no_progress,
) -> PackageResult:
    """Write a folder that optimum or onnxruntime-genai runs; see `docs/ecosystem.md`.

    The engine gets the inputs that these use in the place of `cache_lengths`, and is opened once.
    Weights are copied. Of two engines it is the one that decodes: these runtimes run one graph for
    all calls. Everything is written aside, then renamed.

    Args:
        bundle: A bundle for the target `ort`, with a cache.
        ecosystem: `optimum` or `genai`.
        out: The new folder.
        context: Most tokens of a sequence; by default what the bundle says.
        progress: Told how far long steps are.

    Raises:
        UsageError: There is no such ecosystem, or `context` does not fit.
        BundleError: The bundle is damaged or unsafe.
        UnsupportedError: The bundle is no generator, or not one that the runtime can take.
        OutputError: `out` is there already, or cannot be written.
    """
    started = time.perf_counter()
    if ecosystem not in ECOSYSTEMS:
        known = " or ".join(ECOSYSTEMS)
        raise UsageError(f"there is no ecosystem '{ecosystem}'", where="--for", remedy=known)
    with new_folder(out) as staging:
        read = read_bundle(bundle, progress=progress)
        if read.manifest.target != "ort":
            problem = f"it was built for the target '{read.manifest.target}'"
            remedy = "build it with --target ort"
            raise UnsupportedError(problem, where=str(bundle), remedy=remedy)
        target_of(read)  # sees that the engine is the file that the manifest says
        model = load_model(read.folder / ENGINE)
        facts = read_facts(read, model, context, where=str(bundle))
        ECOSYSTEMS[ecosystem](model, facts, staging)
        with stage(progress, "writing the engine"):
            save_model(model, staging / MODEL)
        with stage(progress, "opening the engine"), OrtSession(staging / MODEL):
            pass
    seconds = time.perf_counter() - started
    notes = () if read.manifest.engine.prefill_from is None else (_WITHOUT_PREFILL,)
    return PackageResult(Path(bundle), ecosystem, Path(out), facts.context, seconds, notes)
