"""Weights that two models have in common are kept once, in the data file of the first.

ONNX says for each tensor in which file its bytes are, so two models may read from one. Only what
has the same bytes is shared; it is found by its SHA-256, and files are read a block at a time. At
the end every weight is read where it is said to be now.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx

from optc.core.errors import OutputError
from optc.core.pread import read_bytes
from optc.ir.external import external_tensors, place_of
from optc.ir.save import ALIGNED_FROM, ALIGNMENT

__all__ = ["share_data"]

_BLOCK_BYTES = 4 << 20
_SMALL_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where bytes are: in which file beside the model, from where on, how many."""

    file: Path
    first: int
    count: int

    def blocks(self) -> Iterator[bytes]:
        """The bytes, a few megabytes at a time."""
        for start in range(self.first, self.first + self.count, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, self.first + self.count - start)
            yield read_bytes(str(self.file), start, size).tobytes()

    def digest(self) -> bytes:
        """SHA-256 of the bytes."""
        summed = hashlib.sha256()
        for block in self.blocks():
            summed.update(block)
        return summed.digest()


def share_data(first: Path, second: Path) -> int:
    """Let `second` read what it has in common with `first` from that one's data file.

    Args:
        first: A model with external data; left as it is.
        second: Another in the same folder, rewritten, its data file too; that file is gone where
            nothing is left for it.

    Returns:
        Bytes that are stored once instead of twice.

    Raises:
        OutputError: The folder cannot be written, or does not keep what is written into it.
    """
    model = onnx.load(second, load_external_data=False)
    there = _places(onnx.load(first, load_external_data=False), first)
    here = _places(model, second)
    digests = {place: place.digest() for _, place in here}
    counts = {place.count for place in digests}
    known = {place.digest(): place for _, place in there if place.count in counts}
    shared = {place for place, digest in digests.items() if digest in known}
    if not shared:
        return 0
    data = second.with_name(f"{second.name}.data")
    aside = second.with_name(f"{second.name}.data.new")
    try:
        moved = _write_rest(aside, digests.keys() - shared)
        if any(new.digest() != digests[old] for old, new in moved.items()):
            raise _lost(aside)
        for tensor, place in here:
            other = known.get(digests[place])
            _point(tensor, other or dataclasses.replace(moved[place], file=data))
        data.unlink()
        if moved:
            aside.rename(data)
        else:
            aside.unlink()
        second.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(second)) from error
    again = _places(onnx.load(second, load_external_data=False), second)
    if [p.digest() for _, p in again] != [digests[place] for _, place in here]:
        raise _lost(second)
    return sum(place.count for place in shared)


def _places(model: onnx.ModelProto, path: Path) -> list[tuple[onnx.TensorProto, _Place]]:
    """External tensors of a model and of its branches, with where their bytes are."""
    found = []
    for tensor in external_tensors(model):
        location, first, count = place_of(tensor)
        found.append((tensor, _Place(path.with_name(location), first, count)))
    return found


def _lost(path: Path) -> OutputError:
    problem = "what it holds is not what was written"
    return OutputError(problem, where=str(path), remedy="write to another disk")


def _write_rest(path: Path, places: Iterable[_Place]) -> dict[_Place, _Place]:
    """Write bytes one behind the other; where each came to lie."""
    moved: dict[_Place, _Place] = {}
    with path.open("wb") as file:
        for place in sorted(places, key=lambda place: place.first):
            _pad(file, ALIGNMENT if place.count > ALIGNED_FROM else _SMALL_ALIGNMENT)
            moved[place] = _Place(path, file.tell(), place.count)
            for block in place.blocks():
                file.write(block)
    return moved


def _pad(file: BinaryIO, multiple: int) -> None:
    file.write(b"\0" * (-file.tell() % multiple))


def _point(tensor: onnx.TensorProto, place: _Place) -> None:
    """Say where the bytes of a tensor are."""
    del tensor.external_data[:]
    for key, value in (
        ("location", place.file.name),
        ("offset", str(place.first)),
        ("length", str(place.count)),
    ):
        tensor.external_data.add(key=key, value=value)
