"""Optimisations of ONNX Runtime that break some quantised graphs: which to leave out, and where.

1. *Weights from outside.* A product with a dequantised weight becomes `MatMulNBits`. In a branch of
   `If` this looks for the weight among the branch's own constants, and the session does not open
   where it lies in the graph around it. What is quantised is left as it stands then: weights are
   dequantised once, when the session opens, and take the time and memory of float weights.
2. *Float8 behind `Relu` or `Clip`.* Rounding to integers can do what these do, and they are dropped
   or looked into; for float8 the first is wrong, and the second does not open.

A graph that has neither is optimised in full. Engines have neither (`optc.targets.ort_lower`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["EVERYTHING", "Optimised", "optimised", "rounds_to_float8"]

_FLOAT8 = range(17, 21)
"""The float8 types as ONNX numbers them (`TensorProto.DataType`)."""


@dataclasses.dataclass(frozen=True)
class Optimised:
    """What the runtime's optimiser may do with a graph.

    Attributes:
        settings: Entries of the session's configuration.
        without: Names of rules that are not applied.
    """

    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    without: tuple[str, ...] = ()


EVERYTHING = Optimised()


def optimised(model: ir.Model) -> Optimised:
    """What it may do with `model` so that it opens and means what it says."""
    nodes = list(model.graph.all_nodes())
    settings = {"session.disable_quant_qdq": "1"} if any(map(_takes_from_outside, nodes)) else {}
    rules = ("ReluQuantRewrite", "ClipQuantRewrite") if any(map(rounds_to_float8, nodes)) else ()
    return Optimised(settings, rules)


def _takes_from_outside(node: ir.Node) -> bool:
    """Whether it is a product whose weight is dequantised from constants of another graph (1).

    Where both operands are dequantised, another rule takes the product, which is sound.
    """
    if node.op_type != "MatMul" or node.domain:
        return False
    left, weight = (value.producer() if value is not None else None for value in node.inputs)
    if not _dequantises(weight) or _dequantises(left):
        return False
    constants = [value for value in weight.inputs if value is not None]
    return not _is_float8(constants[0].dtype) and any(v.graph is not node.graph for v in constants)


def _dequantises(node: ir.Node | None) -> TypeGuard[ir.Node]:
    return node is not None and node.op_type == "DequantizeLinear" and not node.domain


def rounds_to_float8(node: ir.Node) -> bool:
    """Whether it is a `QuantizeLinear` to float8."""
    if node.op_type != "QuantizeLinear" or node.domain:
        return False
    values = [value for value in (*node.outputs, *node.inputs[2:]) if value is not None]
    asked = node.attributes.get_int("output_dtype", 0)
    return asked in _FLOAT8 or any(_is_float8(value.dtype) for value in values)


def _is_float8(kind: ir.DataType | None) -> bool:
    return kind is not None and kind.name.startswith("FLOAT8")
