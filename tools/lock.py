"""Write a lock file: exact versions of all that a project asks for, as installed here.

    python tools/lock.py requirements.lock pyproject.toml

What is asked for comes from a `pyproject.toml`, with all its extras, or from a list of
requirements. `make lock` installs the newest allowed versions into an empty environment and runs
this there.
PyTorch is left out, `tools/install_torch.py` pins it, and with it what only its standard build
needs: CUDA libraries, and Triton where nobody else asks for it.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = "# Exact versions of the whole environment; written by `make lock`.\n"
LEFT_OUT = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
# There are no others.
LINUX_ONLY = re.compile(r"triton|tensorrt-.*")


def wanted(source: Path) -> list[Requirement]:
    """Requirements in a `pyproject.toml`, of all extras too, or in a list."""
    text = source.read_text(encoding="utf-8")
    if source.suffix != ".toml":
        lines = text.splitlines()
        return [Requirement(line) for line in lines if line and not line.startswith("#")]
    project = tomllib.loads(text)["project"]
    texts = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def closure(roots: list[Requirement]) -> dict[str, str]:
    """Installed version of each requirement and of all it needs, by canonical name."""
    pins: dict[str, str] = {}
    asked_for = {canonicalize_name(root.name) for root in roots}
    seen: set[tuple[str, str]] = set()
    waiting = [(root, extra) for root in roots for extra in ("", *root.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name not in asked_for and LEFT_OUT.fullmatch(name):
            continue
        distribution = importlib.metadata.distribution(name)
        pins[name] = distribution.version
        for text in distribution.requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, part) for part in ("", *needed.extras)]
    pins.pop("torch", None)
    return pins


def marker(name: str) -> str:
    """Where a pin does not hold everywhere, where it does."""
    return ' ; platform_system == "Linux"' if LINUX_ONLY.fullmatch(name) else ""


def main() -> None:
    """Write the file named first on the command line for the one named second."""
    pins = closure(wanted(Path(sys.argv[2])))
    lines = [f"{name}=={version}{marker(name)}\n" for name, version in sorted(pins.items())]
    Path(sys.argv[1]).write_text(HEADER + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
