"""Where results go, checked before any work is done."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optc.core.errors import OutputError, UsageError

__all__ = ["SUFFIX", "bundle_path", "check_folder", "folder_bytes", "new_folder"]

SUFFIX = ".optc"


def bundle_path(model: Path, out: str | Path | None) -> Path:
    """Where the bundle of `model` goes.

    Args:
        model: The model file.
        out: What the user said. By default the bundle lies in the working directory and is named
            after the file, or after its folder when the file is called `model.onnx`.

    Raises:
        UsageError: The name does not end in `.optc`.
    """
    if out is None:
        stem = model.resolve().parent.name if model.name == "model.onnx" else model.stem
        return Path(f"{stem or 'model'}{SUFFIX}")
    path = Path(out)
    if not path.name:
        problem = f"'{out}' names no bundle"
        raise UsageError(problem, where="--output", remedy="write NAME.optc")
    if path.suffix != SUFFIX:
        raise UsageError(
            f"the name of a bundle ends in '{SUFFIX}', '{path.name}' does not",
            where="--output",
            remedy=f"write '{path.with_name(path.name + SUFFIX)}'",
        )
    return path


def check_folder(path: str | Path) -> Path:
    """See that files can be written into the folder `path`, which may not exist yet.

    Raises:
        OutputError: It or the nearest existing folder above it is a file, or cannot be written in.
    """
    path = Path(path)
    above = path.absolute()
    while not above.exists():
        above = above.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".optc-", dir=above):
            return path
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A hidden folder beside `path` to write into; it takes that name if the block succeeds.

    Raises:
        OutputError: Something is there already, or the disk refuses.
    """
    out = Path(path).absolute()
    if os.path.lexists(out):
        remedy = "give the name of a new folder, or take it away"
        raise OutputError("it is there already", where=str(path), remedy=remedy)
    aside = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield aside
        aside.chmod(0o755)
        aside.rename(out)
    except OSError as error:
        at = f" ('{error.filename}')" if error.filename else ""
        problem = f"cannot be written: {error.strerror or error}{at}"
        raise OutputError(problem, where=str(path)) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def folder_bytes(path: Path) -> int:
    """Bytes of all files under `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
