"""Names of the files in a bundle, and which paths may be in one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from optc.core.errors import BundleError

__all__ = [
    "MANIFEST",
    "MANIFEST_LIMIT",
    "PARITY",
    "REFERENCE",
    "REPORT",
    "SIGNATURE",
    "TOKENIZER",
    "list_files",
    "path_problem",
]

MANIFEST = "manifest.json"
REFERENCE = "reference.npz"
PARITY = "parity.json"
REPORT = "report.html"
TOKENIZER = "tokenizer"
SIGNATURE = "model.sig"
MANIFEST_LIMIT = 16 << 20
_DEEPEST = 16


def path_problem(name: str) -> str | None:
    """Why `name` cannot be the path of a bundle's file, or None.

    Allowed are relative POSIX paths in normal form, in printable characters, that stay inside on
    every system.
    """
    if not name or not name.isprintable():
        return "is empty or has control characters"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ":" in name:
        return "is an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "points outside the bundle"
    if "\\" in name or PurePosixPath(name).as_posix() != name or name == ".":
        return "is not a plain relative path"
    return None


def list_files(folder: Path) -> list[str]:
    """Every file under `folder`, as sorted POSIX paths relative to it; links are not followed.

    Raises:
        BundleError: There is a symbolic link, or something that is neither file nor folder, or
            folders are nested without end.
    """
    return sorted(_walk(folder, ""))


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    if prefix.count("/") > _DEEPEST:
        raise BundleError("folders in it are nested too deep", where=ascii(prefix))
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_symlink():
                raise BundleError("it is a symbolic link, and bundles have none", where=ascii(name))
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _walk(folder / entry.name, f"{name}/")
            elif stat.S_ISREG(mode):
                yield name
            else:
                raise BundleError("it is neither a file nor a folder", where=ascii(name))
