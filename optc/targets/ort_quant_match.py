"""Read quantised weights, and who reads them, out of a graph with standard Q/DQ."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.ir.streamed import sizes

__all__ = [
    "Rounded",
    "Weight",
    "constant_tensor",
    "made_by",
    "read_weight",
    "readers",
    "rounded_input",
]

_BYTES = {ir.DataType.INT8, ir.DataType.UINT8}
_NIBBLES = {ir.DataType.INT4, ir.DataType.UINT4}
_INTEGERS = _BYTES | _NIBBLES
_SIGNED = {ir.DataType.INT8, ir.DataType.INT4}
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16}


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A dequantised weight: `output` = (`integers` - `zero`) * `scale`, and who shares a scale.

    Attributes:
        output: Output of the DequantizeLinear.
        integers: Initializer of 4- or 8-bit integers, [C,K] or [K,C].
        scale: float32 or float16 initializer: [C], or by groups [C,G] or [G,C], as `integers` lie.
        zero: Of the shape of `scale` and the type of `integers`; None where it is 0 throughout.
        axis: Which axis of `integers` is C.
        group: Input channels that share a scale; 0 for all of them. K need not be a multiple.
    """

    output: ir.Value
    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int
    group: int

    @property
    def name(self) -> str:
        """Name of the integers."""
        return str(self.integers.name)

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The integers, not yet computed."""
        return constant_tensor(self.integers)

    @property
    def inner(self) -> int:
        """K, the length that products sum over."""
        return sizes(self.tensor)[1 - self.axis]

    @property
    def outer(self) -> int:
        """C, the number of output channels."""
        return sizes(self.tensor)[self.axis]

    @property
    def bits(self) -> int:
        """4 or 8."""
        return 4 if self.tensor.dtype in _NIBBLES else 8

    @property
    def is_signed(self) -> bool:
        """Whether integers below zero occur."""
        return self.tensor.dtype in _SIGNED

    @property
    def dtype(self) -> ir.DataType:
        """Element type of the dequantised weight."""
        return constant_tensor(self.scale).dtype

    @property
    def is_plain(self) -> bool:
        """Whether it is int8 with one scale per channel and no zero points."""
        return self.tensor.dtype == ir.DataType.INT8 and not self.group and self.zero is None


@dataclasses.dataclass(frozen=True, eq=False)
class Rounded:
    """An activation on an 8-bit grid, per tensor, and back with the same scale and zero point.

    Attributes:
        source: The activation before rounding, float.
        integers: Output of the QuantizeLinear.
        scale: 0-d.
        zero: 0-d.
    """

    source: ir.Value
    integers: ir.Value
    scale: ir.Value
    zero: ir.Value


def constant_tensor(value: ir.Value) -> ir.TensorProtocol:
    """What an initializer holds, not yet computed."""
    if value.const_value is None:
        raise ValueError(f"'{value.name}' is not constant")
    return value.const_value


def read_weight(node: ir.Node, *, floats: bool = False) -> Weight | None:
    """The weight that `node` dequantises, with scales per output channel or per group of inputs.

    Args:
        node: Any node.
        floats: Whether E4M3 is read too, which there are no kernels for.
    """
    kinds = _INTEGERS | {ir.DataType.FLOAT8E4M3FN} if floats else _INTEGERS
    if node.op_type != "DequantizeLinear" or node.domain or not 2 <= len(node.inputs) <= 3:
        return None
    integers, scale = node.inputs[:2]
    zero = node.inputs[2] if len(node.inputs) == 3 else None
    if integers is None or scale is None or not _fit_together(node, integers, scale, zero):
        return None
    if constant_tensor(integers).dtype not in kinds:
        return None
    axis, group = node.attributes.get_int("axis", 1) % 2, node.attributes.get_int("block_size", 0)
    weight = Weight(node.outputs[0], integers, scale, zero, 1 - axis if group else axis, group)
    return weight if sizes(constant_tensor(scale)) == _scale_shape(weight) else None


def _fit_together(
    node: ir.Node, integers: ir.Value, scale: ir.Value, zero: ir.Value | None
) -> bool:
    """Whether all are constants, in float and in one type of steps."""
    first, second = integers.const_value, scale.const_value
    if first is None or second is None or len(sizes(first)) != 2:
        return False
    if second.dtype not in _FLOATS:
        return False
    if node.attributes.get_int("output_dtype", 0) not in (0, int(second.dtype)):
        return False
    if zero is None:
        return True
    third = zero.const_value
    return third is not None and third.dtype == first.dtype and sizes(third) == sizes(second)


def _scale_shape(weight: Weight) -> tuple[int, ...]:
    if not weight.group:
        return (weight.outer,)
    groups = -(-weight.inner // weight.group)
    return (weight.outer, groups) if weight.axis == 0 else (groups, weight.outer)


def readers(weight: Weight) -> tuple[list[ir.Node], list[ir.Node]]:
    """Products with the weight and lookups in it, in which C is the axis of its output channels."""
    products: list[ir.Node] = []
    lookups: list[ir.Node] = []
    for node, slot, axis in _uses(weight.output, weight.axis):
        if _is_product(node, slot, axis):
            products.append(node)
        elif node.op_type == "Gather" and slot == axis == 0 and _chooses_rows(node):
            lookups.append(node)
    return products, lookups


def _uses(value: ir.Value, axis: int) -> list[tuple[ir.Node, int, int]]:
    """Readers behind any Transpose, each with the input it reads and the axis of C there."""
    found: list[tuple[ir.Node, int, int]] = []
    for node, slot in value.uses():
        if node.domain:
            continue
        if node.op_type == "Transpose":
            found += _uses(node.outputs[0], 1 - axis)
        else:
            found.append((node, slot, axis))
    return found


def _is_product(node: ir.Node, slot: int, axis: int) -> bool:
    """A product plus, at most, a bias."""
    if slot != 1:
        return False
    if node.op_type == "MatMul":
        return axis == 1
    if node.op_type != "Gemm" or node.attributes.get_int("transA", 0) != 0:
        return False
    factors = [node.attributes[k].as_float() for k in ("alpha", "beta") if k in node.attributes]
    is_plain = all(factor == 1.0 for factor in factors)
    return is_plain and axis == (0 if node.attributes.get_int("transB", 0) else 1)


def _chooses_rows(lookup: ir.Node) -> bool:
    """Whether a Gather in a matrix chooses among its rows."""
    return lookup.attributes.get_int("axis", 0) in (0, -2)


def rounded_input(node: ir.Node) -> Rounded | None:
    """The first input of `node`, if it is an activation on one grid of int8 or uint8."""
    up = made_by(node.inputs[0] if node.inputs else None, "DequantizeLinear")
    down = None if up is None else made_by(up.inputs[0], "QuantizeLinear")
    if up is None or down is None or not len(up.inputs) == len(down.inputs) == 3:
        return None
    integers, scale, zero = up.inputs
    source = down.inputs[0]
    if source is None or integers is None or scale is None or zero is None:
        return None
    if not all(_is_same_number(*pair) for pair in zip(up.inputs[1:], down.inputs[1:], strict=True)):
        return None
    return Rounded(source, integers, scale, zero) if constant_tensor(zero).dtype in _BYTES else None


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """What makes `value`, if it is an `op_type` of the standard."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", op_type) else None


def _is_same_number(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both are the same constant number, in the same type."""
    first = None if left is None else left.const_value
    second = None if right is None else right.const_value
    if first is None or second is None or not first.size == second.size == 1:
        return False
    return first.dtype == second.dtype and bool(first.numpy().item() == second.numpy().item())
