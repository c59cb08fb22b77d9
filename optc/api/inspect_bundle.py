"""What is in a bundle: its manifest, in a form for people and programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from optc.api.result import evidence_text
from optc.bundle.decode import encode
from optc.bundle.manifest import Manifest
from optc.bundle.read import read_bundle
from optc.core.context import Progress, no_progress

__all__ = ["BundleReport", "inspect_bundle"]


@dataclasses.dataclass(frozen=True)
class BundleReport:
    """What `inspect` says about a bundle whose files are all as its manifest says.

    Attributes:
        path: The bundle's folder.
        manifest: What it says about itself.
        signed: Whether it carries a signature; `optc verify --public-key` checks it.
    """

    path: Path
    manifest: Manifest
    signed: bool

    @property
    def bytes(self) -> int:
        """Size of all files that the manifest lists."""
        return sum(entry.size for entry in self.manifest.files.values())

    @property
    def evidence(self) -> str:
        """The level of evidence in words."""
        return evidence_text(self.manifest.evidence.level, self.manifest.evidence.source)

    def as_json(self) -> dict[str, Any]:
        """The document `optc.inspect/1` for a bundle; see `docs/json.md`."""
        return {
            "schema": "optc.inspect/1",
            "kind": "bundle",
            "path": str(self.path),
            "bytes": self.bytes,
            "signed": self.signed,
            **encode(self.manifest),
        }


def inspect_bundle(path: str | Path, *, progress: Progress = no_progress) -> BundleReport:
    """Check a bundle's files and read its manifest; nothing is opened.

    Raises:
        BundleError: It is damaged, incomplete or unsafe.
    """
    bundle = read_bundle(path, progress=progress)
    return BundleReport(Path(path), bundle.manifest, bundle.signature is not None)
