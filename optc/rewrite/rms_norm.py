"""RMS normalisation, from its parts to the standard op.

    y = weight * (x / sqrt(mean(x^2) + epsilon))

read from the mean outwards: the square by Pow or Mul, the root by Sqrt and Div, Sqrt and
Reciprocal, or Pow(-0.5), the weight on either side, casts to float32 and back around it.
Source: Zhang and Sennrich 2019 (arXiv 1910.07467); ONNX RMSNormalization-23.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.ir.constants import constant, scalar
from optc.ir.insert import Insert, take_over

__all__ = ["RmsNorm", "fuse_rms_norm", "match_rms_norm"]


@dataclasses.dataclass(frozen=True)
class RmsNorm:
    """One normalisation: input [..,D], weight [D] or None for ones, and the value to replace."""

    x: ir.Value
    weight: ir.Value | None
    epsilon: float
    output: ir.Value


def match_rms_norm(mean: ir.Node) -> RmsNorm | None:
    """Read the normalisation around a `ReduceMean`; None if it is another mean."""
    if mean.op_type != "ReduceMean" or not _is_over_last_axis(mean):
        return None
    x = _squared(mean.inputs[0])
    added = _only_user(mean.outputs[0], "Add")
    epsilon = _other_scalar(added, mean.outputs[0]) if added is not None else 0.0
    if x is None or epsilon is None:
        return None
    normal = _normalised((added or mean).outputs[0], x)
    if normal is None:
        return None
    narrow = _before_cast(x)
    found = _weighted(narrow, _after_cast(normal, narrow), epsilon)
    return found or _weighted(x, normal, epsilon) or _plain(narrow, normal, epsilon)


def _weighted(x: ir.Value, normal: ir.Value, epsilon: float) -> RmsNorm | None:
    product = _only_user(normal, "Mul")
    weight = _other(product, normal) if product is not None else None
    if product is None or weight is None or not _is_vector(weight, x):
        return None
    return RmsNorm(x, weight, epsilon, product.outputs[0])


def _plain(x: ir.Value, normal: ir.Value, epsilon: float) -> RmsNorm | None:
    """Without a weight."""
    normal = _after_cast(normal, x)
    known = x.shape is not None and isinstance(x.shape[-1], int)
    return RmsNorm(x, None, epsilon, normal) if known and normal.dtype == x.dtype else None


def fuse_rms_norm(model: ir.Model, found: RmsNorm) -> None:
    """Put the standard op in the place of the parts; dead parts stay for the caller to remove."""
    at = found.output.producer()
    assert at is not None
    weight = found.weight or _ones(model, at, found.x)
    node = ir.node(
        "RMSNormalization",
        [found.x, weight],
        {"axis": -1, "epsilon": found.epsilon, "stash_type": 1},
    )
    model.graph.insert_before(at, node)
    take_over(found.output, node.outputs[0])


def _ones(model: ir.Model, before: ir.Node, x: ir.Value) -> ir.Value:
    size = x.shape[-1] if x.shape is not None else None
    dtype = x.dtype or ir.DataType.FLOAT
    ones = np.ones(size if isinstance(size, int) else 0, dtype.numpy())
    return Insert(model, before).node(
        "Constant", [], dtype, ir.Shape(ones.shape), value=ir.tensor(ones, dtype=dtype)
    )


def _is_over_last_axis(mean: ir.Node) -> bool:
    axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    x = mean.inputs[0]
    if axes is None or x is None or not mean.attributes.get_int("keepdims", 1):
        return False
    last = [-1, len(x.shape) - 1] if x.shape is not None else [-1]
    return axes.size == 1 and int(axes.reshape(())) in last


def _squared(value: ir.Value | None) -> ir.Value | None:
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Pow" and scalar(node.inputs[1]) == 2.0:
        return node.inputs[0]
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return None


def _normalised(variance: ir.Value, x: ir.Value) -> ir.Value | None:
    """`x / sqrt(variance)`."""
    power = _only_user(variance, "Pow")
    if power is not None and scalar(power.inputs[1]) == -0.5:
        return _times(power.outputs[0], x)
    root = _only_user(variance, "Sqrt")
    if root is None:
        return None
    divided = _only_user(root.outputs[0], "Div")
    if divided is not None and divided.inputs[1] is root.outputs[0]:
        if divided.inputs[0] is x:
            return divided.outputs[0]
        is_one = scalar(divided.inputs[0]) == 1.0
        return _times(divided.outputs[0], x) if is_one else None
    inverse = _only_user(root.outputs[0], "Reciprocal")
    return _times(inverse.outputs[0], x) if inverse is not None else None


def _times(factor: ir.Value, x: ir.Value) -> ir.Value | None:
    product = _only_user(factor, "Mul")
    return product.outputs[0] if product is not None and _other(product, factor) is x else None


def _before_cast(x: ir.Value) -> ir.Value:
    """What was cast to float32 to be normalised."""
    node = x.producer()
    is_cast = node is not None and node.op_type == "Cast" and x.dtype == ir.DataType.FLOAT
    if not is_cast or node is None or node.inputs[0] is None:
        return x
    half = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    return node.inputs[0] if node.inputs[0].dtype in half else x


def _after_cast(normal: ir.Value, x: ir.Value) -> ir.Value:
    """The normalised value, cast back to the type of `x` where that is another one."""
    if normal.dtype == x.dtype:
        return normal
    cast = _only_user(normal, "Cast")
    return cast.outputs[0] if cast is not None else normal


def _is_vector(weight: ir.Value, x: ir.Value) -> bool:
    if weight.shape is None or x.shape is None or len(weight.shape) != 1:
        return False
    return weight.dtype == x.dtype and weight.shape[0] == x.shape[-1]


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    if len(users) != 1 or users[0].op_type != op or value.is_graph_output():
        return None
    return users[0]


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    left, right = node.inputs
    return right if left is value else left


def _other_scalar(node: ir.Node, value: ir.Value) -> float | None:
    return scalar(_other(node, value))
