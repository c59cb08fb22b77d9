"""Install the pinned PyTorch, the CPU build where one is offered.

PyTorch's CPU build carries a local version, `+cpu`, that only some package sources hold, and the
standard Linux build brings gigabytes of CUDA libraries that an export does not need. So three
sources are tried in turn:

1. the CPU build, from the package sources configured here (mirror, folder of wheels);
2. the CPU build, from PyTorch's own public index;
3. the standard build, from the configured sources; it needs a Triton of its own choice, so here
   our pins do not hold yet.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys

VERSION = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STANDARD = "the standard build"
ATTEMPTS = (
    ("the CPU build from your package sources", [f"torch=={VERSION}+cpu"]),
    (
        "the CPU build from PyTorch's index",
        [f"torch=={VERSION}+cpu", "--extra-index-url", CPU_INDEX, "--retries=0", "--timeout=15"],
    ),
    (STANDARD, [f"torch=={VERSION}"]),
)


def installed() -> str | None:
    """Version of the PyTorch that is here, without its local part."""
    try:
        return importlib.metadata.version("torch").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Try the sources in turn; exit 1 with pip's words when all fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraint", help="pins for what PyTorch itself depends on")
    constraint = parser.parse_args().constraint
    if installed() == VERSION:
        return
    pip = [sys.executable, "-m", "pip", "install"]
    pins = ["--constraint", constraint] if constraint else []
    errors = []
    for what, arguments in ATTEMPTS:
        print(f"torch {VERSION}: trying {what}", flush=True)
        command = [*pip, *arguments, *([] if what == STANDARD else pins)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return
        errors.append(f"{what}:\n{done.stderr}")
    sys.exit("\n".join([*errors, f"torch {VERSION} could not be installed"]))


if __name__ == "__main__":
    main()
