"""External data of an ONNX file, checked before anybody opens it. Imports no compiler.

Running a bundle needs this and nothing else of `optc.ir`; onnx_ir alone is 40 MB of resident memory
and half a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import onnx

from optc.core.errors import ModelFileError

__all__ = ["ExternalFiles", "check_external_data", "external_tensors", "place_of"]


@dataclasses.dataclass(frozen=True)
class ExternalFiles:
    """The files beside one model.

    Attributes:
        path: The model's file, which messages name.
        sizes: Bytes of each file seen so far, by location.
    """

    path: Path
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    def check(self, name: str, location: str, first: int, count: int, needed: int) -> None:
        """See that a tensor's bytes are there.

        Args:
            name: The tensor.
            location: Its file, relative to the model's folder.
            first: Its first byte.
            count: Bytes that are said to be its own.
            needed: Bytes that its shape and type take.

        Raises:
            ModelFileError: Outside the model's folder, missing or truncated.
        """
        root = self.path.resolve().parent
        file = (root / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(root):
            problem = f"the weight '{name}' lies outside the model's folder ('{location}')"
            raise ModelFileError(problem, where=str(self.path))
        if location not in self.sizes:
            if not file.is_file():
                problem = f"its external data file '{location}' is missing"
                remedy = "copy it beside the model"
                raise ModelFileError(problem, where=str(self.path), remedy=remedy)
            self.sizes[location] = file.stat().st_size
        size = self.sizes[location]
        if first < 0 or first + count > size or count < needed:
            problem = (
                f"its external data file '{location}' is truncated: '{name}' needs byte "
                f"{first + count}, the file ends at {size}"
            )
            raise ModelFileError(problem, where=str(self.path), remedy="copy the file again")


def check_external_data(path: Path) -> None:
    """Check every external tensor of an ONNX file; its data is not read.

    Raises:
        ModelFileError: Missing file, not ONNX, or data outside the folder, missing or truncated.
    """
    if not path.is_file():
        raise ModelFileError("no such file", where=str(path))
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        problem = f"not an ONNX model ({type(error).__name__})"
        raise ModelFileError(problem, where=str(path)) from error
    files = ExternalFiles(path)
    for tensor in external_tensors(model):
        _check(files, tensor)


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model, its branches and its functions whose bytes lie in another file."""
    external = onnx.TensorProto.EXTERNAL
    yield from (tensor for tensor in _tensors(model) if tensor.data_location == external)


def place_of(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Where the bytes of an external tensor are said to lie.

    Returns:
        The file, relative to the model's folder, the first byte, and how many; 0 where that is
        not said.

    Raises:
        ValueError: Not numbers.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    first, count = (int(entries.get(key, 0)) for key in ("offset", "length"))
    return entries.get("location", ""), first, count


def _check(files: ExternalFiles, tensor: onnx.TensorProto) -> None:
    try:
        location, first, count = place_of(tensor)
        needed = _bytes(tensor)
    except (KeyError, ValueError) as error:
        problem = f"the weight '{tensor.name}' has no usable type, shape or place"
        raise ModelFileError(problem, where=str(files.path)) from error
    files.check(tensor.name, location, first, count or needed, needed)


def _bytes(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise ValueError(f"dimension {dim}")
        count *= dim
    packed = tensor.data_type in _NIBBLES
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return (count + 1) // 2 if packed else count * itemsize


_NIBBLES = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1}


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        for node in nodes:
            for attribute in node.attribute:
                yield from [attribute.t, *attribute.tensors]
                graphs += [attribute.g, *attribute.graphs]
        nodes = []
