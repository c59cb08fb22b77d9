"""What reading an `.npz` file may raise where its bytes are damaged."""

from __future__ import annotations

import zipfile
import zlib

__all__ = ["DAMAGED"]

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What the zip reader raises; RuntimeError is an entry that claims encryption."""
