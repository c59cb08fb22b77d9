"""Calibration data as users have it: a reference file, or an archive with one array per input.

    np.savez("calibration.npz", input_ids=ids)      # int64 [N,S]: N samples

The first axis of every array counts samples; each becomes a batch of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.errors import SampleError
from optc.core.npz import DAMAGED
from optc.core.session import Port
from optc.ir.reference import check_inputs, is_reference, load_reference

__all__ = ["load_calibration"]


def load_calibration(path: str | Path, inputs: Sequence[Port]) -> tuple[Feeds, ...]:
    """Samples of a file, checked against the inputs of a graph.

    Of a reference, its calibration data; its judged samples where it has none.

    Args:
        path: The file.
        inputs: What the graph takes; caches are left to whoever runs it.

    Raises:
        SampleError: It cannot be read, holds no sample, or does not fit: names, ranks, sizes,
            types, NaN.
    """
    path = Path(path)
    arrays = _plain(path)
    if arrays is None:
        reference = load_reference(path)
        samples = reference.calibration or tuple(sample.inputs for sample in reference.samples)
    else:
        samples = _rows(arrays, str(path))
    if not samples:
        raise SampleError("there is no calibration sample in it", where=str(path))
    for index, sample in enumerate(samples):
        check_inputs(sample, inputs, f"{path}: calibration {index}")
    return tuple(samples)


def _plain(path: Path) -> dict[str, Array] | None:
    """Arrays by name of an archive that is no reference; None for anything else."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                problem, remedy = "it holds one array without a name", "write it with numpy.savez"
                raise SampleError(problem, where=str(path), remedy=f"{remedy}(file, input=array)")
            if "meta" in archive.files and is_reference(archive["meta"]):
                return None
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, *DAMAGED):
        return None  # reading it as a reference says what is wrong with it


def _rows(arrays: dict[str, Array], where: str) -> tuple[dict[str, Array], ...]:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"'{name}' has {count}" for name, count in sorted(counts.items()))
        problem = f"its arrays hold different numbers of samples: {said}"
        raise SampleError(problem, where=where, remedy="the first axis counts samples")
    count = next(iter(counts.values()), 0)
    return tuple({name: a[row : row + 1] for name, a in arrays.items()} for row in range(count))
