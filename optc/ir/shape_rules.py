"""Rules of shape inference that `onnx-shape-inference` lacks, in its registry.

They follow sizes through arithmetic that older exporters write: a `Where` that guards a size
against -1 in front of an `Expand`, tensors cut into equal pieces, slices with computed bounds.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_shape_inference as inference
from onnx_shape_inference import ShapeInferenceContext

from optc.ir.constants import constant

_ENDLESS = 2**31 - 1
_FEW = 16  # entries of a vector of sizes
_SINCE = 24  # every model is brought to this opset before its shapes are asked for


@inference.registry.register("", "ConstantOfShape", since_version=_SINCE)
def _infer_filled(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """`ConstantOfShape` of sizes that are known as expressions; its contents when a vector."""
    _infer_as_usual(ctx, node)
    sizes, output = _sizes(ctx, node.inputs[0]), node.outputs[0]
    if sizes is None:
        return
    ctx.set_shape(output, ir.Shape(sizes))
    fill = node.attributes.get("value")
    if fill is not None and len(sizes) == 1 and isinstance(sizes[0], int) and sizes[0] <= _FEW:
        number = fill.as_tensor().numpy().reshape(())
        if number.dtype.kind == "i":
            ctx.set_symbolic_value(output, [int(number)] * sizes[0])


@inference.registry.register("", "Where", since_version=_SINCE)
def _infer_guarded_sizes(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """`Where(Equal(a, b), x, y)` over sizes, where each a and b are known to be equal or not."""
    _infer_as_usual(ctx, node)
    test = node.inputs[0].producer() if node.inputs[0] is not None else None
    if test is None or test.op_type != "Equal":
        return
    known = [_sizes(ctx, v) for v in (*test.inputs, *node.inputs[1:])]
    longest = max((len(sizes) for sizes in known if sizes is not None), default=0)
    if any(sizes is None or len(sizes) not in (1, longest) for sizes in known):
        return
    rows = zip(*(sizes * (longest // len(sizes)) for sizes in known if sizes), strict=True)
    chosen = [_choose(*row) for row in rows]
    if chosen and None not in chosen:
        ctx.set_symbolic_value(node.outputs[0], [size for size in chosen if size is not None])


@inference.registry.register("", "Div", since_version=_SINCE)
def _infer_quotient(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """The quotient of sizes: where a tensor is cut into equal pieces."""
    _infer_as_usual(ctx, node)
    sizes, parts = (_sizes(ctx, value) for value in node.inputs)
    if sizes is None or parts is None or len(parts) != 1 or not isinstance(parts[0], int):
        return
    if parts[0] > 0:
        ctx.set_symbolic_value(node.outputs[0], [size // parts[0] for size in sizes])


@inference.registry.register("", "Slice", since_version=_SINCE)
def _infer_slice(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """A slice with bounds that are expressions, or that are written as "very large"."""
    dims = _sliced(ctx, node)
    if dims is None:
        _infer_as_usual(ctx, node)
        return
    output, data = node.outputs[0], node.inputs[0]
    output.shape = None  # what was believed of it before is no better
    dtype = data.dtype if data is not None else None
    ctx.set_shape_and_dtype(output, ir.Shape(dims), dtype)


def _sliced(ctx: ShapeInferenceContext, node: ir.Node) -> list[_Size] | None:
    """Sizes of a slice; None where they are not known, or where it is of a vector of sizes."""
    data, bounds = node.inputs[0], _bounds(ctx, node)
    if data is None or data.shape is None or bounds is None:
        return None
    if ctx.get_symbolic_value(data) is not None:  # the library follows what is in it
        return None
    dims: list[_Size] = list(data.shape)
    for axis, start, end, step in bounds:
        cut = _cut(dims[axis], start, end)
        if cut is None or not isinstance(step, int) or step < 1:
            return None
        dims[axis] = (cut + step - 1) // step
    return dims


def _bounds(
    ctx: ShapeInferenceContext, node: ir.Node
) -> list[tuple[int, _Size, _Size, _Size]] | None:
    """Axis, start, end and step of each axis that is cut."""
    known = [_sizes(ctx, value) for value in node.inputs[1:]]
    if len(known) < 2 or known[0] is None or known[1] is None:
        return None
    starts, ends = known[0], known[1]
    axes = known[2] if len(known) > 2 else list(range(len(starts)))
    steps = known[3] if len(known) > 3 else [1] * len(starts)
    if axes is None or steps is None or not all(isinstance(axis, int) for axis in axes):
        return None
    numbers = [int(axis) for axis in axes if isinstance(axis, int)]
    return list(zip(numbers, starts, ends, steps, strict=False))


def _is_endless(end: _Size) -> bool:
    return isinstance(end, int) and end >= _ENDLESS


def _cut(size: _Size, start: _Size, end: _Size) -> _Size | None:
    """The length of `[start:end]` of an axis; None where it depends on what is larger."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[start:end])
    if not isinstance(start, int):
        return None
    if _is_endless(end) or end == size:
        return size - start if start >= 0 else None
    if isinstance(end, int) and end < 0 <= start:
        return size + end - start
    return None


def _infer_as_usual(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    usual = inference.registry.get("", node.op_type, _SINCE - 1)
    if usual is not None:
        usual(ctx, node)


_Size = int | ir.SymbolicDim


def _sizes(ctx: ShapeInferenceContext, value: ir.Value | None) -> list[_Size] | None:
    """The entries of a vector of sizes."""
    if value is None:
        return None
    known = ctx.get_symbolic_value(value)
    if known is not None:
        return list(known)
    array = constant(value)
    if array is not None:
        return [int(n) for n in array.reshape(-1)] if array.dtype.kind == "i" else None
    return None


def _choose(a: _Size, b: _Size, equal: _Size, other: _Size) -> _Size | None:
    """One entry; None where it depends on a size."""
    if isinstance(a, int) and isinstance(b, int):
        return equal if a == b else other
    number, size = (a, b) if isinstance(a, int) else (b, a)
    is_size = isinstance(size, ir.SymbolicDim) and (size.value or "").isidentifier()
    if isinstance(number, int) and number < 0 and is_size:  # no size is negative, a sum may be
        return other
    return None
