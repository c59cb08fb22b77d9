"""Write a bundle: whole, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from optc.bundle.layout import MANIFEST, MANIFEST_LIMIT, list_files
from optc.bundle.manifest import FileEntry, Manifest
from optc.core.errors import BundleError, OutputError

__all__ = ["check_writable", "hash_file", "write_bundle"]


def check_writable(out: str | Path) -> None:
    """Find out before the expensive work whether `write_bundle` can succeed.

    Raises:
        OutputError: Something that is not a bundle is there, or the folder cannot be written.
    """
    out = _absolute(out)
    _check_replaceable(out)
    parent = next(folder for folder in out.parents if os.path.lexists(folder))
    probe = _beside(parent / out.name)
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _cannot(out, error) from error


def write_bundle(out: str | Path, fill: Callable[[Path], Manifest]) -> Path:
    """Make the bundle `out`, or leave everything as it was.

    Everything is written into a hidden folder beside `out`, which then takes its name. A bundle
    that is there already is replaced at that moment and not before.

    Args:
        out: The bundle's folder; missing parents are made.
        fill: Writes all files into the folder it is given, and returns the manifest, whose `files`
            are filled in here.

    Returns:
        `out`, as an absolute path.

    Raises:
        OutputError: Something that is not a bundle is there, or the disk refuses.
        BundleError: `fill` left links, or its manifest contradicts its files.
    """
    out = _absolute(out)
    check_writable(out)
    try:
        with _parents(out.parent), _staging(out) as staging:
            manifest = fill(staging)
            (staging / MANIFEST).unlink(missing_ok=True)
            files = {name: hash_file(staging / name) for name in list_files(staging)}
            complete = dataclasses.replace(manifest, files=files)
            complete.check()
            (staging / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
            _take_name(staging, out)
    except OSError as error:
        raise _cannot(out, error) from error
    return out


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file, read once."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(file.tell(), digest)


def _absolute(out: str | Path) -> Path:
    path = Path(out).absolute()
    if path.name in ("", ".."):
        raise OutputError("it is not a place for a bundle", where=str(path))
    return path


def _check_replaceable(out: Path) -> None:
    if not os.path.lexists(out) or _is_bundle(out):
        return
    what = "a symbolic link" if out.is_symlink() else "something that is not an optc bundle"
    remedy = "choose another path or move it away"
    raise OutputError(f"{what} is there already", where=str(out), remedy=remedy)


def _is_bundle(out: Path) -> bool:
    """Whether deleting `out` deletes only what optc wrote: its manifest must say that it did."""
    manifest = out / MANIFEST
    if out.is_symlink() or not manifest.is_file() or manifest.stat().st_size > MANIFEST_LIMIT:
        return False
    try:
        Manifest.from_json(manifest.read_bytes())
    except BundleError:
        return False
    return True


def _beside(out: Path, kind: str = "tmp") -> Path:
    return out.with_name(f".{out.name}.{kind}-{secrets.token_hex(4)}")


def _cannot(out: Path, error: OSError) -> OutputError:
    at = f" ('{error.filename}')" if error.filename else ""
    return OutputError(f"cannot be written: {error.strerror}{at}", where=str(out))


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make missing parents; take them away again if the block fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`; gone at the end unless it took the name."""
    staging = _beside(out)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _take_name(staging: Path, out: Path) -> None:
    """Rename `staging` to `out`; an old bundle is set aside first and deleted last."""
    # Looked at again: the work in between may have taken minutes.
    _check_replaceable(out)
    if not out.exists():
        staging.rename(out)
        return
    old = _beside(out, "old")
    out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
