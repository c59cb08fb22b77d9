"""Inputs of a cached graph, and what is computed from them first."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["insert_valid_lengths", "past_input"]


def past_input(
    model: ir.Model, name: str, new: ir.Value, batch: str, tokens: int | str | None
) -> ir.Value:
    """Add the input [B,H,tokens,D] that holds what `new` [B,H,S,D] is appended to.

    Args:
        model: The model.
        name: Name of the input.
        new: Keys or values of a call; the number and size of its heads are known.
        batch: Symbol of the batch.
        tokens: Number of tokens it holds, or a symbol for it.
    """
    dims = list(new.shape or ())
    shape = ir.Shape([batch, dims[1], tokens, dims[3]])
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(new.dtype or ir.DataType.FLOAT))
    model.graph.inputs.append(value)
    return value


def insert_valid_lengths(model: ir.Model, tokens: ir.Value, lengths: ir.Value) -> ir.Value:
    """`cache_lengths + S`: valid keys per row, new ones included."""
    count = ir.node("Shape", [tokens], {"start": 1, "end": 2})
    total = ir.node("Add", [lengths, count.outputs[0]])
    model.graph.insert_before(model.graph[0], [count, total])
    valid = total.outputs[0]
    valid.name, valid.dtype, valid.shape = "valid_lengths", ir.DataType.INT64, lengths.shape
    return valid
