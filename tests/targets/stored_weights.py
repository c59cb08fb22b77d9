"""Products and lookups whose weights are on a grid, as graphs with standard Q/DQ.

Weights are stored as the pass `quant` stores them: steps, scales and zero points, by channel or by
group, with output channels first or last.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime

from optc.core.context import Array, Feeds
from optc.rewrite.quant_grid import Grid

__all__ = ["Stored", "build", "exact", "ops", "relative", "stored", "with_tokens"]

_KINDS = {
    ir.DataType.INT8: np.dtype(np.int8),
    ir.DataType.UINT8: np.dtype(np.uint8),
    ir.DataType.INT4: np.dtype(ml_dtypes.int4),
    ir.DataType.UINT4: np.dtype(ml_dtypes.uint4),
}


class Stored:
    """A weight on a grid.

    Args:
        name: What it is called; its dequantised value is called so too.
        rows: The weight, [C,K].
        grid: What it may take.
        by_rows: Whether it is stored as [C,K], and not [K,C].
        kind: Type of the scales.
        with_zeros: Whether symmetric grids store their zero points, which are 0, as well.
    """

    def __init__(
        self,
        name: str,
        rows: Array,
        grid: Grid,
        *,
        by_rows: bool = False,
        kind: type = np.float32,
        with_zeros: bool = False,
    ):
        scales, zeros = grid.scales(rows, np.dtype(kind))
        steps = grid.steps(rows, scales, zeros)
        self.values = grid.values(steps, scales, zeros)
        """What the steps stand for, float32 [C,K]."""
        parts = [steps.astype(_KINDS[grid.dtype]), scales, zeros.astype(_KINDS[grid.dtype])]
        if not grid.group:
            parts[1:] = [part[:, 0] for part in parts[1:]]
        if not by_rows:
            parts = [np.ascontiguousarray(part.T) for part in parts]
        if grid.symmetric and not with_zeros:
            parts.pop()
        names = (f"{name}_steps", f"{name}_scale", f"{name}_zero")
        self.arrays = dict(zip(names, parts, strict=False))
        axis = int(by_rows) if grid.group else 1 - int(by_rows)
        block = f", block_size = {grid.group}" if grid.group else ""
        self.line = f"{name} = DequantizeLinear<axis = {axis}{block}>({', '.join(self.arrays)})"
        """The node that dequantises, as text."""


def stored(rng: np.random.Generator, shape: tuple[int, int], grid: Grid, **how: object) -> Stored:
    """A random weight [C,K] called `w`, whose channels differ in size and in where they lie."""
    rows = rng.standard_normal(shape) * (1 + rng.random((shape[0], 1))) + rng.random((shape[0], 1))
    return Stored("w", rows.astype(np.float32), grid, **how)  # type: ignore[arg-type]


def build(signature: str, lines: str, *weights: Stored, **constants: Array) -> ir.Model:
    """A graph from its signature and its nodes; `weights` are dequantised first."""
    body = "\n".join([*(weight.line for weight in weights), lines])
    text = f'<ir_version: 11, opset_import: ["": 24]> main ({signature} {{\n{body}\n}}'
    arrays = dict(constants)
    for weight in weights:
        arrays |= weight.arrays
    head, tail = text.split(") =>", 1)
    declared = [f"{_declared(array)} {name}" for name, array in arrays.items()]
    text = ", ".join([head, *declared]) + ") =>" + tail
    model = ir.from_onnx_text(text)
    for value in [v for v in model.graph.inputs if v.name in arrays]:
        value.const_value = ir.tensor(arrays[str(value.name)], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def _declared(array: Array) -> str:
    sizes = ", ".join(map(str, array.shape))
    return f"{ir.DataType.from_numpy(array.dtype).name.lower()}[{sizes}]"


def with_tokens(source: str, name: str) -> str:
    """Nodes that round `source` [..., K] to int8, token by token, and call the result `name`."""
    return f"""
    {name}_axes = Constant<value_ints = [-1]>()
    {name}_share = Constant<value_float = {1 / 127}>()
    {name}_tiny = Constant<value_float = 1e-30>()
    {name}_size = Abs({source})
    {name}_most = ReduceMax<keepdims = 1>({name}_size, {name}_axes)
    {name}_raw = Mul({name}_most, {name}_share)
    {name}_s = Max({name}_raw, {name}_tiny)
    {name}_ratio = Div({source}, {name}_s)
    {name}_near = Round({name}_ratio)
    {name}_q = Cast<to = 3>({name}_near)
    {name}_back = Cast<to = 1>({name}_q)
    {name} = Mul({name}_back, {name}_s)"""


def exact(model: ir.Model, feeds: Feeds) -> dict[str, Array]:
    """What ONNX Runtime makes of the graph as it stands, without optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def ops(model: ir.Model) -> list[str]:
    """Types of the nodes, in order."""
    return [node.op_type for node in model.graph]


def relative(got: Array, want: Array) -> float:
    """Norm of the difference over norm of `want`."""
    difference = got.astype(np.float64) - want.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(want.astype(np.float64)))
