"""What an encoder is given by name: an `.npz` file, and whether its arrays are what it takes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from optc.core.context import Array, Feeds
from optc.core.errors import InputError, UsageError
from optc.core.npz import DAMAGED
from optc.core.registry import suggestion
from optc.core.session import Port, Session
from optc.ir.interface import PADDING, TOKENS
from optc.runtime.arguments import named
from optc.runtime.encoder import check_encoded, encoder_ports, say_ports
from optc.targets.feeds import check_feeds

__all__ = ["check_arrays", "load_arrays"]

_NPY = b"\x93NUMPY"
_REMEDY = "write it with numpy.savez(file, name=array)"


def check_arrays(session: Session, inputs: Feeds) -> int:
    """See that arrays are what the encoder takes; the number of rows.

    Raises:
        UsageError: A name, a size or a token that does not fit.
        SampleError: A type or a shape that does not fit.
        UnsupportedError: More tokens than the encoder has positions for.
    """
    wanted = encoder_ports(session)
    names = [port.name for port in wanted]
    unknown = next((name for name in inputs if name not in names), None)
    if unknown is not None:
        problem = f"the encoder takes no '{unknown}', but {say_ports(wanted)}"
        raise UsageError(problem, remedy=suggestion(unknown, names))
    missing = [port for port in wanted if port.name not in inputs]
    if missing:
        raise UsageError(f"the encoder's input {say_ports(missing)} is not given")
    check_feeds(wanted, inputs)
    counts = {array.shape[0] for array in inputs.values() if array.ndim}
    if len(counts) > 1 or not min(counts, default=1):
        sizes = ", ".join(f"'{name}' has {len(a)} rows" for name, a in inputs.items() if a.ndim)
        raise UsageError(f"inputs have one number of rows, at least one, but {sizes}")
    _check_sizes(wanted, inputs)
    _check_tokens(session, inputs)
    return min(counts, default=1)


def _check_sizes(wanted: tuple[Port, ...], inputs: Feeds) -> None:
    """Nothing is empty, and axes that are one axis to the encoder have one size."""
    for name, array in inputs.items():
        if not array.size:
            raise UsageError(f"the input '{name}' is empty, its shape is {list(array.shape)}")
    seen: dict[str, tuple[str, int]] = {}
    for port, axis, size in _axes(wanted, inputs):
        other, before = seen.setdefault(axis, (port, size))
        if size != before:
            shapes = (f"'{name}' is {list(inputs[name].shape)}" for name in (other, port))
            raise UsageError(f"inputs do not fit each other: {', '.join(shapes)}")


def _axes(wanted: tuple[Port, ...], inputs: Feeds) -> Iterator[tuple[str, str, int]]:
    """Input, axis and size; a mask has the axes of the tokens, whatever the graph calls them."""
    texts = [port for port in wanted if port.name in {TOKENS, PADDING} and len(port.shape) == 2]
    for port in wanted:
        dims = texts[0].shape if port in texts else port.shape
        for dim, size in zip(dims, inputs[port.name].shape, strict=True):
            if isinstance(dim, str) and dim != "?":
                yield port.name, dim, size


def _check_tokens(session: Session, inputs: Feeds) -> None:
    ids, mask = inputs.get(TOKENS), inputs.get(PADDING)
    if ids is not None and ids.ndim == 2 and ids.dtype.kind in "iu":
        check_encoded(session, ids.tolist())
    if mask is not None and mask.ndim == 2 and mask.dtype.kind in "iub":
        hidden = np.flatnonzero(~mask.astype(bool).any(axis=1))
        if hidden.size:
            which = named("row", int(hidden[0]) + 1, len(mask))
            raise UsageError(f"{which} of '{PADDING}' hides every token")


def load_arrays(path: str | Path) -> dict[str, Array]:
    """Read an `.npz` file, without pickles.

    Raises:
        InputError: No such file, or none that holds named arrays of numbers.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(what, where=str(path))
    try:
        with path.open("rb") as file:
            start = file.read(len(_NPY))
        if not zipfile.is_zipfile(path):
            raise InputError(_what_else(start), where=str(path), remedy=_REMEDY)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: _numbers(archive, name, path) for name in archive.files}
    except (*DAMAGED, OSError) as error:
        raise InputError(f"damaged archive ({error})", where=str(path)) from error


def _what_else(start: bytes) -> str:
    if start == _NPY:
        return "it holds one array without a name"
    return "not an .npz file of arrays"


def _numbers(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Array:
    try:
        found = archive[name]
    except ValueError as error:  # an array of Python objects, which only a pickle could bring back
        raise InputError(f"'{name}' is no array of numbers", where=str(path)) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind in "OSUV":
        raise InputError(f"'{name}' is no array of numbers", where=str(path), remedy=_REMEDY)
    return found
