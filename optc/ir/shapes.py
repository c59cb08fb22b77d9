"""Shapes of every value, with sizes as expressions over the sizes of the inputs.

`onnx-shape-inference` follows sizes through the arithmetic that exporters build on `Shape`, with
some rules of ours added (`optc.ir.shape_rules`). Where it finds nothing, what the exporter wrote
beside the graph is believed, if it names sizes of inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir
import onnx_shape_inference as inference
from onnxscript import optimizer

import optc.ir.shape_rules  # noqa: F401 - registers its rules
from optc.core.errors import ModelFileError

__all__ = ["SMALL", "has_subgraphs", "infer_shapes"]

SMALL = 1024
"""Elements of a constant that is folded; weights stay in their file."""
_ROUNDS = 3
_INVENTED = re.compile(r"\b_d\d+\b")


def infer_shapes(model: ir.Model) -> None:
    """Infer the shape and type of every value and fold small constants, in place.

    Sizes that nothing is known of get names of their own. Each run knows more than the one before:
    constants are folded, and names that the exporter gave are in the place of invented ones.

    Raises:
        ModelFileError: An operator is used in a way that ONNX does not allow.
    """
    declared = {v: v.shape for node in model.graph for v in node.outputs if v.shape is not None}
    try:
        _infer(model, "override")
        for _ in range(_ROUNDS):
            folded = _fold_small_constants(model)
            if not _believe(model, declared) and not folded:
                break
            _infer(model, "refine")
    except (inference.OpUsageError, inference.ShapeInferenceError) as error:
        raise ModelFileError(f"the graph is not valid: {error}") from error
    for node in model.graph.all_nodes():
        for value in node.outputs:
            _forget_contents(value)


def _infer(model: ir.Model, policy: inference.ShapeMergePolicy) -> None:
    inference.infer_symbolic_shapes(
        model, policy=policy, warn_on_missing=False, adopt_declared_symbols=False
    )
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = _with_numbers(value.shape)


def _believe(model: ir.Model, declared: Mapping[ir.Value, ir.Shape]) -> bool:
    """Put declared sizes in the place of invented ones; other shapes are to be inferred anew.

    Returns:
        Whether there were invented ones; if not, nothing was forgotten.
    """
    known = {s for v in model.graph.inputs if v.shape is not None for s in v.shape.free_symbols()}
    values = [v for node in model.graph for v in node.outputs if not v.is_graph_output()]
    if not any(_has_invented(value.shape) for value in values):
        return False
    for value in values:
        inferred, given = value.shape, declared.get(value)
        value.shape = None
        if inferred is None or given is None or len(given) != len(inferred):
            continue
        if _has_invented(inferred):
            value.shape = _merged(inferred, given, known)
    return True


def _merged(inferred: ir.Shape, declared: ir.Shape, known: set[str]) -> ir.Shape | None:
    """`inferred` with declared sizes for invented ones; None if one is left."""
    dims = []
    for dim, given in zip(inferred, declared, strict=True):
        names = given.free_symbols() if isinstance(given, ir.SymbolicDim) else set()
        if not _is_invented(dim):
            dims.append(dim)
        elif names and names <= known:  # numbers stay behind when people free an input's axis
            dims.append(given)
        else:
            return None
    return ir.Shape(dims)


def _has_invented(shape: ir.Shape | None) -> bool:
    return shape is None or any(_is_invented(dim) for dim in shape)


def _is_invented(dim: int | ir.SymbolicDim) -> bool:
    text = dim.value if isinstance(dim, ir.SymbolicDim) else ""
    return text is None or bool(_INVENTED.search(text))


def _with_numbers(shape: ir.Shape | None) -> ir.Shape | None:
    """Sizes that turned out to be numbers as numbers."""
    if shape is None:
        return None
    texts = [dim.value if isinstance(dim, ir.SymbolicDim) else None for dim in shape]
    if not any(text is not None and text.isdecimal() for text in texts):
        return shape
    return ir.Shape(
        [
            int(t) if t is not None and t.isdecimal() else d
            for t, d in zip(texts, shape, strict=True)
        ]
    )


def has_subgraphs(model: ir.Model) -> bool:
    """Whether a node of the main graph has a graph of its own, such as `If`."""
    return any(node.graph is not model.graph for node in model.graph.all_nodes())


def _fold_small_constants(model: ir.Model) -> bool:
    """Fold shape arithmetic; not beside subgraphs, whose inlining leaves broken graphs behind."""
    if has_subgraphs(model):
        return False
    folded = optimizer.fold_constants(
        model, onnx_shape_inference=False, input_size_limit=SMALL, output_size_limit=SMALL
    )
    return bool(folded.modified)


def _forget_contents(value: ir.Value) -> None:
    """Drop what inference noted about a computed value: a later pass may change it."""
    noted = value.metadata_props.pop(inference.SYM_DATA_KEY, None)
    if noted is not None and value.producer() is not None:
        value.const_value = None
