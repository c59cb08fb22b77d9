"""What every peer of `quant_quality.py` calibrates with: `sequences(FILE.npz)`.

This file needs nothing but numpy: it runs in the environment of each peer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def sequences(path: Path) -> list[dict[str, np.ndarray]]:
    """The feeds of a reference file's calibration section, in its order."""
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            section, _, rest = name.partition("/")
            if section == "calibration":
                index, _, value = rest.partition("/")
                found.setdefault(int(index), {})[value] = archive[name]
    return [feeds for _, feeds in sorted(found.items())]
