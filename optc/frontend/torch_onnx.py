"""PyTorch's exporter, called the one way we need it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from optc.core.errors import UnsupportedError, UsageError
from optc.frontend.quiet import quiet
from optc.frontend.simplify import simplify
from optc.frontend.source import Kind, Source

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "check_opset", "to_onnx"]

OLDEST_OPSET, NEWEST_OPSET = 18, 24


def check_opset(opset: int) -> None:
    """See that the exporter can write `opset`; asked for an older one, it silently writes 18.

    Raises:
        UsageError: It cannot.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        problem = f"opset {opset} cannot be exported"
        remedy = f"give one from {OLDEST_OPSET} to {NEWEST_OPSET}"
        raise UsageError(problem, where="--opset", remedy=remedy)


def to_onnx(source: Source, opset: int) -> ir.Model:
    """Trace `source` with dynamic batch and sequence, and translate it to ONNX.

    The weights of the result are the module's own tensors, not copies. Metadata of the exporter
    (Python stack traces, with paths of this machine) is dropped.

    Args:
        source: The model.
        opset: Opset of the result, 18 to 24.

    Returns:
        A model whose inputs and outputs are called as in `source`.

    Raises:
        UnsupportedError: PyTorch's exporter cannot export this model.
    """
    check_opset(opset)
    try:
        with quiet(), torch.no_grad():
            model = _translate(source, opset)
            _settle_axes(model)
            simplify(model)
    except Exception as error:
        problem = f"PyTorch's exporter cannot export it ({_first_cause(error)})"
        raise UnsupportedError(problem, where=source.label) from error
    if model.opset_imports.get("") != opset:
        problem = f"PyTorch's exporter has no opset {opset} for it"
        raise UnsupportedError(problem, where=source.label)
    return model


def _first_cause(error: BaseException) -> str:
    """Type and first line of what went wrong first; the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip(':.')}" if lines else type(error).__name__


def _translate(source: Source, opset: int) -> ir.Model:
    """Token models get axes `batch` and `sequence`; modules those that turn out to be free.

    A module is captured first: only then do axes that its weights fix become fixed, where the
    exporter's own capture would leave them open and fail at run time.
    """
    model: Any = source.wrapped()
    args = tuple(source.example.values())
    axes: Any = None
    if source.kind is Kind.MODULE:
        auto = torch.export.Dim.AUTO
        free = tuple(dict.fromkeys(range(tensor.dim()), auto) for tensor in args)
        model = torch.export.export(model, args, dynamic_shapes=(free,), strict=False)
    else:
        axes = (tuple({0: "batch", 1: "sequence"} for _ in args),)
    program = torch.onnx.export(
        model,
        args,
        dynamo=True,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=axes,
        input_names=list(source.inputs),
        output_names=list(source.outputs),
        optimize=False,
    )
    if program is None:
        raise RuntimeError("it returned nothing")
    return program.model


def _settle_axes(model: ir.Model) -> None:
    """Make an axis a number where the exporter wrote the number as the name of a symbol."""
    values = [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]
    for shape in (value.shape for value in values if value.shape is not None):
        for axis, size in enumerate(shape):
            if isinstance(size, ir.SymbolicDim) and str(size.value).isdigit():
                shape[axis] = int(str(size.value))
