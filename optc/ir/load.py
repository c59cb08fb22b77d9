"""Read a model file, treated as hostile input; weights stay memory-mapped."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from optc.core.errors import ModelFileError
from optc.ir.canonical import canonicalize

__all__ = ["load_canonical", "load_model"]


def load_model(path: str | Path) -> ir.Model:
    """Read `path` as ONNX and check it and its external data, without loading weights.

    Raises:
        ModelFileError: Missing file, not ONNX, external data missing, truncated or outside the
            model's folder.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise ModelFileError(what, where=str(path), remedy="give the path of an .onnx file")
    try:
        model = ir.load(path)
    except Exception as error:
        problem = f"not an ONNX model ({type(error).__name__})"
        raise ModelFileError(problem, where=str(path)) from error
    if not model.graph.outputs or not model.opset_imports:
        raise ModelFileError("not an ONNX model (no graph in it)", where=str(path))
    _check_external_data(model, path)
    return model


def load_canonical(path: str | Path) -> ir.Model:
    """`load_model`, then bring it to the canonical form (opset 24, see `optc.ir.canonical`)."""
    model = load_model(path)
    canonicalize(model)
    return model


def _check_external_data(model: ir.Model, path: Path) -> None:
    root = path.resolve().parent
    sizes: dict[str, int] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                _check_tensor(tensor, root, path, sizes)


def _check_tensor(tensor: ir.ExternalTensor, root: Path, path: Path, sizes: dict[str, int]) -> None:
    location = str(tensor.location)
    file = (root / location).resolve()
    if Path(location).is_absolute() or not file.is_relative_to(root):
        problem = f"the weight '{tensor.name}' lies outside the model's folder ('{location}')"
        raise ModelFileError(problem, where=str(path))
    if location not in sizes:
        if not file.is_file():
            problem = f"its external data file '{location}' is missing"
            raise ModelFileError(problem, where=str(path), remedy="copy it beside the model")
        sizes[location] = file.stat().st_size
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if end > sizes[location] or (tensor.length or tensor.nbytes) < tensor.nbytes:
        problem = (
            f"its external data file '{location}' is truncated: '{tensor.name}' needs byte {end}, "
            f"the file ends at {sizes[location]}"
        )
        raise ModelFileError(problem, where=str(path), remedy="copy the file again")
