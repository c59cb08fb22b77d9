"""Read a bundle, treated as hostile: everything is checked before anything is opened."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

from optc.bundle.layout import (
    MANIFEST,
    MANIFEST_LIMIT,
    REFERENCE,
    SIGNATURE,
    TOKENIZER,
    list_files,
)
from optc.bundle.manifest import Manifest
from optc.bundle.write import hash_file
from optc.core.context import Progress, no_progress
from optc.core.errors import BundleError

__all__ = ["Bundle", "read_bundle"]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle that passed all checks.

    Attributes:
        folder: Where it lies; absolute.
        manifest: What it says about itself.
        given: Where it lies, as it was said; for messages.
    """

    folder: Path
    manifest: Manifest
    given: str

    @property
    def reference(self) -> Path | None:
        """The reference samples, if it carries them."""
        return self.folder / REFERENCE if REFERENCE in self.manifest.files else None

    @property
    def tokenizer(self) -> Path | None:
        """The folder of what came with the model: tokenizer, `config.json`; None if nothing did."""
        inside = any(name.startswith(f"{TOKENIZER}/") for name in self.manifest.files)
        return self.folder / TOKENIZER if inside else None

    @property
    def signature(self) -> Path | None:
        """The signature file, if it is signed; `optc.bundle.sign` says whether it holds."""
        path = self.folder / SIGNATURE
        return path if path.is_file() else None


def read_bundle(
    path: str | Path, *, verify_hashes: bool = True, progress: Progress = no_progress
) -> Bundle:
    """Check a bundle and give its contents.

    In this order, cheapest first: the manifest's size, syntax, schema and paths; that the folder
    has just the files listed, no links, nothing special; sizes; hashes.

    Args:
        path: The bundle's folder.
        verify_hashes: Whether to read every byte; without it, only names and sizes are checked.
        progress: Told the bytes hashed so far.

    Raises:
        BundleError: Anything is not as the manifest says; the message names the file.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        what = "it is a file, not a bundle's folder" if folder.exists() else "no such bundle"
        raise BundleError(what, where=str(path))
    try:
        manifest = Manifest.from_json(_manifest_bytes(folder, str(path)), f"{path}/{MANIFEST}")
        _check_names(folder, manifest, str(path))
        _check_sizes(folder, manifest, str(path))
        if verify_hashes:
            _check_hashes(folder, manifest, str(path), progress)
    except OSError as error:
        problem = f"'{error.filename}' cannot be read: {error.strerror}"
        raise BundleError(problem, where=str(path)) from error
    return Bundle(folder, manifest, str(path))


def _manifest_bytes(folder: Path, where: str) -> bytes:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        problem = f"it has no {MANIFEST}, so it is not an optc bundle"
        remedy = "give the folder that 'optc build' wrote"
        raise BundleError(problem, where=where, remedy=remedy)
    status = path.lstat()
    where = f"{where}/{MANIFEST}"
    if not stat.S_ISREG(status.st_mode):
        raise BundleError("it is not a plain file", where=where)
    if status.st_size > MANIFEST_LIMIT:
        problem = f"it has {status.st_size} bytes, more than any manifest needs"
        raise BundleError(problem, where=where)
    return path.read_bytes()


def _check_names(folder: Path, manifest: Manifest, where: str) -> None:
    found = set(list_files(folder)) - {MANIFEST, SIGNATURE}
    listed = set(manifest.files)
    for name in sorted(listed - found):
        problem = f"the file {name!a} is missing"
        raise BundleError(problem, where=where, remedy="copy the bundle again")
    for name in sorted(found - listed):
        raise BundleError(f"the file {name!a} is not in its manifest", where=where)


def _check_sizes(folder: Path, manifest: Manifest, where: str) -> None:
    for name, entry in sorted(manifest.files.items()):
        size = (folder / name).stat().st_size
        if size != entry.size:
            problem = f"the file '{name}' has {size} bytes, its manifest says {entry.size}"
            raise BundleError(problem, where=where, remedy="copy the bundle again")


def _check_hashes(folder: Path, manifest: Manifest, where: str, progress: Progress) -> None:
    total = sum(entry.size for entry in manifest.files.values())
    done = 0
    for name, entry in sorted(manifest.files.items()):
        if hash_file(folder / name).sha256 != entry.sha256:
            problem = f"the file '{name}' is damaged: its SHA-256 is not the manifest's"
            raise BundleError(problem, where=where, remedy="copy the bundle again")
        done += entry.size
        progress("bytes checked", done, total)
