"""Environments of other people's tools, each made once, below `build/peers/`.

Their packages contradict ours and each other. What one needs is in `requirements-NAME.txt`; what is
in `requirements-NAME.alone.txt` is installed without what it asks for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "build" / "peers"


def programs(requirements: Path, name: str) -> Path:
    """The folder of an environment's programs; the environment is made if it is not there."""
    folder = ENVIRONMENTS / name
    if not (folder / ".installed").is_file():
        make_environment(requirements, folder)
    return folder / "bin"


def make_environment(requirements: Path, folder: Path) -> None:
    """A virtual environment with what a requirements file says."""
    print(f"making {folder.relative_to(ROOT)}, once", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin/python")
    if "torch==" in requirements.read_text(encoding="utf-8"):
        run([python, str(ROOT / "tools/install_torch.py")])
    run([python, "-m", "pip", "install", "-q", "-r", str(requirements)])
    alone = requirements.with_suffix(".alone.txt")
    if alone.is_file():
        run([python, "-m", "pip", "install", "-q", "--no-deps", "-r", str(alone)])
    # optimum-intel brings it, PyTorch's CPU build rejects it, and nothing here looks at images.
    run([python, "-m", "pip", "uninstall", "-q", "-y", "torchvision"])
    (folder / ".installed").touch()


def run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command, offline by default; what it printed.

    Raises:
        RuntimeError: It failed; the message ends with what it said.
    """
    environment = environment or {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
