"""Write a model, read it back, and see that it is the one that was meant.

While weights stream to disk, a checksum (CRC-32) of each is computed on the way, so nothing is
computed twice; then the file is read in blocks, weight by weight. What this finds are mistakes of
ours, of a library or of a file system: bytes in another place, cut short, or left out. It does not
test the medium: the system may answer from its memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import onnx
import onnx_ir as ir

from optc.core.errors import OptcError, OutputError
from optc.core.pread import read_bytes
from optc.ir.external import place_of
from optc.ir.save import ALIGNED_FROM, ALIGNMENT, save_model

__all__ = ["Meant", "read_back", "save_checked"]

_BLOCK_BYTES = 4 << 20
_REMEDY = "write to another disk, or report it if it happens there too"


@dataclasses.dataclass(frozen=True)
class Meant:
    """What one initializer in a file must be.

    Attributes:
        dtype: Element type.
        shape: Sizes.
        count: Bytes.
        checksum: CRC-32 of the bytes.
    """

    dtype: int
    shape: tuple[int, ...]
    count: int
    checksum: int


def save_checked(model: ir.Model, path: str | Path) -> Path:
    """`save_model`, then `read_back`.

    Raises:
        OutputError: The folder cannot be written, or does not keep what is written into it.
        OptcError: What was written is not as it should be.
    """
    path = Path(path)
    values = [v for graph in model.graphs() for v in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    _check_no_source(tensors, path)
    witnesses = [_Witness(t) if t is not None and _has_bytes(t.dtype) else None for t in tensors]
    try:
        for value, witness in zip(values, witnesses, strict=True):
            value.const_value = witness or value.const_value
        save_model(model, path)
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
    meant: dict[str, list[Meant]] = {}
    for value, witness in zip(values, witnesses, strict=True):
        if witness is not None:
            meant.setdefault(str(value.name), []).append(witness.meant())
    read_back(path, meant, (model.ir_version, dict(model.opset_imports)))
    return path


def read_back(path: Path, meant: dict[str, list[Meant]], versions: tuple[Any, Any]) -> None:
    """See that a file holds what was meant.

    1. Its IR version and opsets are the model's.
    2. Every initializer is there, once, with its type and shape, and no other.
    3. Weights lie in one file beside the model, inside it, apart from each other, the large ones
       at the start of a page.
    4. Their bytes have the checksum of what was written.

    Args:
        path: The model's file.
        meant: The initializers by name; branches may have several of one name.
        versions: IR version, and opsets by domain.

    Raises:
        OutputError: Case 4, or the file cannot be read.
        OptcError: Cases 1 to 3.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # the parser of protobuf raises whatever it likes
        problem = f"it cannot be read again ({type(error).__name__})"
        raise OutputError(problem, where=str(path), remedy=_REMEDY) from error
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if (proto.ir_version, opsets) != versions:
        problem = f"it says {proto.ir_version, opsets} for IR version and opsets, not {versions}"
        raise OptcError(problem, where=str(path))
    left = {name: list(wanted) for name, wanted in meant.items()}
    places: list[tuple[int, int, str]] = []
    for tensor in _initializers(proto.graph):
        if not _has_bytes(tensor.data_type):
            continue
        found = _found(tensor, path, places)
        wanted = left.get(tensor.name, [])
        if found not in wanted:
            raise _differs(path, tensor.name, found, wanted)
        wanted.remove(found)
    missing = [name for name, wanted in left.items() if wanted]
    if missing:
        raise OptcError(f"the weight '{missing[0]}' was not written", where=str(path))
    _check_apart(path, places)


def _differs(path: Path, name: str, found: Meant, wanted: list[Meant]) -> OptcError:
    if not wanted:
        return OptcError(f"there is a weight '{name}' that nobody wrote", where=str(path))
    if any(dataclasses.replace(found, checksum=w.checksum) == w for w in wanted):
        problem = f"the weight '{name}' is not what was written: its checksum is another"
        return OutputError(problem, where=str(path), remedy=_REMEDY)
    return OptcError(f"the weight '{name}' is {found}, not {wanted[0]}", where=str(path))


def _found(tensor: onnx.TensorProto, path: Path, places: list[tuple[int, int, str]]) -> Meant:
    """What an initializer in the file is; where its bytes are is added to `places`."""
    shape = tuple(tensor.dims)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        raw = ir.serde.TensorProtoTensor(tensor).tobytes()
        return Meant(tensor.data_type, shape, len(raw), zlib.crc32(raw))
    location, first, count = place_of(tensor)
    if location != f"{path.name}.data":
        problem = f"the weight '{tensor.name}' lies in '{location}', not beside the model"
        raise OptcError(problem, where=str(path))
    if first % ALIGNMENT and count > ALIGNED_FROM:
        problem = f"the weight '{tensor.name}' begins at byte {first}, inside a page"
        raise OptcError(problem, where=str(path))
    places.append((first, first + count, tensor.name))
    checksum = 0
    for start in range(first, first + count, _BLOCK_BYTES):
        size = min(_BLOCK_BYTES, first + count - start)
        checksum = zlib.crc32(read_bytes(f"{path}.data", start, size).data, checksum)
    return Meant(tensor.data_type, shape, count, checksum)


def _check_apart(path: Path, places: list[tuple[int, int, str]]) -> None:
    places.sort()
    for (_, end, one), (start, _, other) in itertools.pairwise(places):
        if start < end:
            raise OptcError(f"the weights '{one}' and '{other}' overlap", where=str(path))


def _check_no_source(tensors: list[ir.TensorProtocol | None], path: Path) -> None:
    """A file that weights are still to be read from must not be written."""
    data = Path(f"{path}.data")
    if not data.exists():
        return
    for source in {tensor.path for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}:
        if data.samefile(source):
            problem = "the model's own weights would be overwritten"
            raise OutputError(problem, where=str(path), remedy="write into another folder")


def _has_bytes(dtype: int) -> bool:
    """Not strings, which lie in the model's own file and have no bytes of their own."""
    return int(dtype) != onnx.TensorProto.STRING


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _initializers(inner)


class _Writable(Protocol):
    def write(self, data: Any, /) -> Any: ...


class _Counted:
    """A file that what is written into it is counted and summed of."""

    def __init__(self, file: _Writable):
        self._file = file
        self.count = self.checksum = 0

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        self.count += memoryview(data).nbytes
        self._file.write(data)
        return memoryview(data).nbytes


class _Witness(ir.LazyTensor):
    """A tensor that remembers what it wrote."""

    def __init__(self, tensor: Any):
        shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
        super().__init__(lambda: tensor, tensor.dtype, shape, name=tensor.name)
        self._real = tensor
        self._wrote: _Counted | None = None

    def tofile(self, file: Any) -> None:
        """Write the bytes, and see what they are."""
        self._wrote = _Counted(file)
        self._real.tofile(self._wrote)

    def meant(self) -> Meant:
        """What the file must hold now."""
        shape = tuple(int(size) for size in self.shape.numpy())
        if self._wrote is None:  # so small that it is in the model's own file
            raw = self._real.tobytes()
            return Meant(int(self.dtype), shape, len(raw), zlib.crc32(raw))
        count = int(self.nbytes)
        if self._wrote.count != count:
            problem = f"the weight '{self.name}' has {count} bytes and wrote {self._wrote.count}"
            raise OptcError(problem)
        return Meant(int(self.dtype), shape, count, self._wrote.checksum)
