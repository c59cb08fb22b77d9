"""Weights for graphs written as text, whose inputs stand for them."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

__all__ = ["bake"]


def bake(model: ir.Model, data: Container[str] = ()) -> ir.Model:
    """Give each float input but those in `data` the same content every time; the model itself."""
    rng = np.random.default_rng(1)
    for value in list(model.graph.inputs):
        if value.dtype != ir.DataType.FLOAT or value.name in data:
            continue
        array = rng.standard_normal(tuple(value.shape)).astype(np.float32) / 2
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    return model
