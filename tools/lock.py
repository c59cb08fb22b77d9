"""Write requirements.lock: exact versions of all that pyproject.toml asks for, as installed here.

`make lock` installs the newest allowed versions into an empty environment and runs this there.
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


def wanted(pyproject: Path) -> list[Requirement]:
    """Requirements of the project with all its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
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
    """Write the file named on the command line."""
    pins = closure(wanted(Path(__file__).parent.parent / "pyproject.toml"))
    lines = [f"{name}=={version}{marker(name)}\n" for name, version in sorted(pins.items())]
    Path(sys.argv[1]).write_text(HEADER + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
