"""`reference.npz`: real inputs and what the original model answered.

Keys of the archive (no pickles; readable by `numpy.load(..., allow_pickle=False)`):

* `meta`: 0-d string array, JSON: `{"version": 1, "source": "pytorch" | "graph", "note": "..."}`
* `samples/{i}/inputs/{name}`, `samples/{i}/outputs/{name}`: one judged sample
* `calibration/{i}/{name}`: inputs only, for passes that calibrate; never judged
* `prompts/{i}`, `continuations/{i}`: int64 [n], a prompt and the original's greedy continuation
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optc.core.context import Array
from optc.core.errors import OutputError, SampleError
from optc.core.npz import DAMAGED
from optc.core.session import Port

__all__ = [
    "NOTHING",
    "Reference",
    "Sample",
    "check_inputs",
    "is_reference",
    "load_reference",
    "save_reference",
]

VERSION = 1
_REMEDY = "make it with 'optc reference'"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One judged sample: inputs and the original's outputs, by name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Everything a build is judged against.

    Attributes:
        source: `pytorch`, or `graph` when the input graph is its own oracle.
        samples: Judged samples.
        calibration: Inputs for passes that calibrate.
        prompts: Token ids, int64 [n].
        continuations: The original's greedy continuation of each prompt, int64 [m].
        note: A sentence on where the data is from.
    """

    source: str
    samples: tuple[Sample, ...]
    calibration: tuple[dict[str, Array], ...] = ()
    prompts: tuple[Array, ...] = ()
    continuations: tuple[Array, ...] = ()
    note: str = ""

    def check(self, inputs: Iterable[Port], outputs: Iterable[Port], where: str) -> None:
        """See that samples and calibration data fit a graph's signature.

        Raises:
            SampleError: No samples, a missing or unknown name, a wrong rank, size or dtype, NaN.
        """
        if not self.samples:
            raise SampleError("there is no sample in it", where=where)
        wanted, given = {p.name: p for p in inputs}, {p.name: p for p in outputs}
        for index, sample in enumerate(self.samples):
            _check_arrays(sample.inputs, wanted, f"{where}: sample {index}", "input")
            _check_arrays(sample.outputs, given, f"{where}: sample {index}", "output")
        for index, feeds in enumerate(self.calibration):
            check_inputs(feeds, wanted.values(), f"{where}: calibration {index}")


NOTHING = Reference("none", (), note="Nothing was compared.")
"""Where there are no samples, and none were made."""


def check_inputs(feeds: Mapping[str, Array], inputs: Iterable[Port], where: str) -> None:
    """See that one sample fits the inputs of a graph.

    Raises:
        SampleError: A missing or unknown name, a wrong rank, size or dtype, nothing in it, NaN.
    """
    _check_arrays(feeds, {port.name: port for port in inputs}, where, "input")


def _check_arrays(
    arrays: Mapping[str, Array], signature: Mapping[str, Port], where: str, kind: str
) -> None:
    if set(arrays) != set(signature):
        problem = f"its {kind}s are {sorted(arrays)}, the model's are {sorted(signature)}"
        raise SampleError(problem, where=where, remedy=_REMEDY)
    for name, array in arrays.items():
        port = signature[name]
        shape = ", ".join(str(d) for d in port.shape)
        fits = len(port.shape) == array.ndim and all(
            not isinstance(d, int) or d == n for d, n in zip(port.shape, array.shape, strict=True)
        )
        if not fits:
            problem = f"{kind} '{name}' has shape {list(array.shape)}, the model's is [{shape}]"
            raise SampleError(problem, where=where, remedy=_REMEDY)
        if kind == "input" and array.dtype.name != port.dtype:
            problem = f"{kind} '{name}' is {array.dtype.name}, the model's is {port.dtype}"
            raise SampleError(problem, where=where, remedy=_REMEDY)
        if kind == "input" and not array.size and all(n != 0 for n in port.shape):
            raise SampleError(f"{kind} '{name}' is empty, {list(array.shape)}", where=where)
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise SampleError(f"{kind} '{name}' contains NaN", where=where)


def save_reference(reference: Reference, path: str | Path) -> Path:
    """Write `reference.npz`; the same content gives the same bytes."""
    path = Path(path)
    meta = {"version": VERSION, "source": reference.source, "note": reference.note}
    arrays: dict[str, Any] = {"meta": np.array(json.dumps(meta, sort_keys=True))}
    for i, sample in enumerate(reference.samples):
        arrays |= {f"samples/{i}/inputs/{k}": v for k, v in sample.inputs.items()}
        arrays |= {f"samples/{i}/outputs/{k}": v for k, v in sample.outputs.items()}
    for i, feeds in enumerate(reference.calibration):
        arrays |= {f"calibration/{i}/{k}": v for k, v in feeds.items()}
    arrays |= {f"prompts/{i}": v for i, v in enumerate(reference.prompts)}
    arrays |= {f"continuations/{i}": v for i, v in enumerate(reference.continuations)}
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    return path


def is_reference(meta: Array) -> bool:
    """Whether an archive's `meta` is a reference's, and not samples of an input of that name."""
    return meta.ndim == 0 and meta.dtype.kind == "U"


def load_reference(path: str | Path) -> Reference:
    """Read `reference.npz`.

    Raises:
        SampleError: Missing, not such an archive, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise SampleError(what, where=str(path))
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
        if meta["version"] != VERSION:
            problem = f"a reference file of version {meta['version']}, this optc reads {VERSION}"
            raise SampleError(problem, where=str(path), remedy=_REMEDY)
        return _assemble(arrays, meta)
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise SampleError("not a reference file", where=str(path), remedy=_REMEDY) from error
    except DAMAGED as error:
        raise SampleError(f"damaged archive ({error})", where=str(path)) from error


def _assemble(arrays: dict[str, Array], meta: dict[str, Any]) -> Reference:
    tree: dict[str, dict[int, dict[str, Array]]] = {}
    for key, array in arrays.items():
        section, index, *rest = key.split("/", 2)
        tree.setdefault(section, {}).setdefault(int(index), {})["/".join(rest)] = array
    return Reference(
        source=str(meta["source"]),
        samples=tuple(_sample(row) for _, row in sorted(tree.get("samples", {}).items())),
        calibration=tuple(row for _, row in sorted(tree.get("calibration", {}).items())),
        prompts=tuple(row[""] for _, row in sorted(tree.get("prompts", {}).items())),
        continuations=tuple(row[""] for _, row in sorted(tree.get("continuations", {}).items())),
        note=str(meta["note"]),
    )


def _sample(row: dict[str, Array]) -> Sample:
    parts: dict[str, dict[str, Array]] = {"inputs": {}, "outputs": {}}
    for key, array in row.items():
        part, _, name = key.partition("/")
        parts[part][name] = array
    return Sample(parts["inputs"], parts["outputs"])
