"""Read small constants out of a graph."""

from __future__ import annotations

import onnx_ir as ir

from optc.core.context import Array
from optc.ir.streamed import read_tensor

__all__ = ["constant", "scalar"]

_SMALL = 4096


def constant(value: ir.Value | None) -> Array | None:
    """Content of a small constant: an initializer that is no input, or a `Constant` node."""
    if value is None or (value.is_graph_input() and not value.is_initializer()):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _SMALL:
        return None
    return read_tensor(tensor)


def scalar(value: ir.Value | None) -> float | None:
    """Content of a one-element numeric constant, whatever its rank."""
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(()))
