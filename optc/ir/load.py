"""Read a model file, treated as hostile input; weights stay in their file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from optc.core.errors import ModelFileError, PassContractError
from optc.ir.canonical import canonicalize
from optc.ir.external import ExternalFiles
from optc.ir.streamed import read_tensor
from optc.ir.verify import verify_model

__all__ = ["load_canonical", "load_model"]


def load_model(path: str | Path) -> ir.Model:
    """Read `path` as ONNX and check it and its tensors; external data is not read.

    Raises:
        ModelFileError: Missing file, not ONNX, a tensor whose data does not fit its shape, external
            data missing, truncated or outside the model's folder.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise ModelFileError(what, where=str(path), remedy="give the path of an .onnx file")
    try:
        with _quiet():
            model = ir.load(path)
    except Exception as error:
        problem = f"not an ONNX model ({type(error).__name__})"
        raise ModelFileError(problem, where=str(path)) from error
    if not model.graph.outputs or not model.opset_imports:
        raise ModelFileError("not an ONNX model (no graph in it)", where=str(path))
    _check_tensors(model, path)
    _embed_constants(model)
    return model


def load_canonical(path: str | Path) -> ir.Model:
    """`load_model`, then bring it to the canonical form (opset 24, see `optc.ir.canonical`).

    Raises:
        ModelFileError: As `load_model`, or the model is not well-formed.
        UnsupportedError: The model's opset cannot be converted.
    """
    path = Path(path)
    model = load_model(path)
    _drop_repeated_node_names(model)
    with _quiet():
        _check_form(model, path)
        canonicalize(model)
        _check_form(model, path)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what libraries log about models: tracebacks, shapes they cannot infer."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnx_shape_inference")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _drop_repeated_node_names(model: ir.Model) -> None:
    """ONNX lets nodes share a name; canonical graphs do not, and name them anew."""
    seen: set[str] = set()
    for node in model.graph.all_nodes():
        if node.name in seen:
            node.name = None
        seen.add(node.name or "")


def _check_form(model: ir.Model, path: Path) -> None:
    try:
        verify_model(model)
    except PassContractError as error:
        problem = f"the model is not well-formed: {error.problem}"
        raise ModelFileError(problem, where=str(path)) from error


def _check_tensors(model: ir.Model, path: Path) -> None:
    files = ExternalFiles(path)
    for tensor in _tensors(model):
        if any(isinstance(dim, int) and dim < 0 for dim in tensor.shape):
            problem = f"the weight '{tensor.name}' has a negative dimension"
            raise ModelFileError(problem, where=str(path))
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(tensor, files)
        else:
            _check_data(tensor, path)


def _check_data(tensor: ir.TensorProtocol, path: Path) -> None:
    try:
        tensor.numpy()
    except ValueError as error:
        problem = f"the data of the weight '{tensor.name}' does not fit its shape"
        raise ModelFileError(problem, where=str(path)) from error


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of a model: initializers and attributes, in subgraphs and functions too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in _nodes(model):
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.as_tensors()


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _embed_constants(model: ir.Model) -> None:
    """Let constants with external data hold the mapped file: the ONNX checker wants no path."""
    for node in _nodes(model):
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
            continue
        tensor = attribute.as_tensor()
        if isinstance(tensor, ir.ExternalTensor):
            mapped = ir.Tensor(read_tensor(tensor), dtype=tensor.dtype, name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", mapped)


def _check_external(tensor: ir.ExternalTensor, files: ExternalFiles) -> None:
    if not tensor.base_dir:  # onnx_ir forgets it in functions
        tensor.base_dir = files.path.resolve().parent
    count = tensor.length or tensor.nbytes
    files.check(str(tensor.name), str(tensor.location), tensor.offset or 0, count, tensor.nbytes)
