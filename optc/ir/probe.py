"""Ask a small part of a graph what it computes, by computing it.

Exporters spell the same thing in dozens of ways: a causal mask may be a comparison of ranges, a
`GatherND` of packed-sequence ids, a slice of a constant triangle. Instead of one pattern per
spelling, a probe evaluates the sub-graph between chosen values at chosen sizes with the ONNX
reference evaluator, and the caller compares the numbers with what it hopes for. Sub-graphs that
are probed hold masks, positions and data movement: small, and free of weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from optc.core.context import Array
from optc.ir.streamed import read_tensor

__all__ = ["Probe", "ProbeFailure", "ancestors", "data_inputs", "fixed_values"]

_MAX_NODES = 400
_MAX_CONSTANT = 1 << 24


class GatherElements(OpRun):
    """The operator without the limit of 64 entries that the evaluator of onnx 1.23 has."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int | None = None) -> tuple[Array]:
        along = (axis or 0) % data.ndim
        part = [slice(None) if i == along else slice(n) for i, n in enumerate(indices.shape)]
        return (np.take_along_axis(data[tuple(part)], indices, along),)


class ProbeFailure(Exception):
    """A sub-graph cannot be evaluated; the text says why."""


@dataclasses.dataclass
class _Part:
    """Nodes in evaluation order, and the values that must be fed to them."""

    nodes: list[ir.Node]
    feeds: dict[str, Array]


class Probe:
    """Evaluates parts of one model's main graph at given sizes.

    Args:
        model: The model; not changed.
        sizes: Size of each symbolic dimension, by name.

    Attributes:
        elements: How many elements each value has that was computed last, by name.
    """

    def __init__(self, model: ir.Model, sizes: Mapping[str, int]):
        self.model = model
        self.sizes = dict(sizes)
        self.elements: dict[str, int] = {}

    def shape_of(self, value: ir.Value) -> tuple[int, ...] | None:
        """The concrete shape of `value` at these sizes; None where it is not known."""
        if value.shape is None:
            return None
        dims = value.shape.evaluate(self.sizes)
        if not all(isinstance(d, int) for d in dims):
            return None
        return tuple(int(d) for d in dims)  # type: ignore[arg-type]

    def run(self, target: ir.Value, given: Mapping[ir.Value, Array] | None = None) -> Array:
        """Compute `target`.

        Args:
            target: The wanted value.
            given: Values whose contents are chosen by the caller; evaluation stops there.

        Raises:
            ProbeFailure: The part is too large, needs data that is not given, or does not run.
        """
        known = dict(given or {})
        if target in known:
            return known[target]
        part = self._collect(target, known)
        try:
            return self._evaluate(_as_model(part, target, self.model), part.feeds)
        except Exception as error:  # the reference evaluator raises whatever numpy raises
            raise ProbeFailure(f"its sub-graph does not run ({type(error).__name__})") from error

    def _evaluate(self, proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
        """Run a graph of one output; what nobody needs any more is given back at once."""
        evaluator = ReferenceEvaluator(proto, new_ops=[GatherElements])
        held: dict[str, Array] = dict(feeds)
        last = {name: i for i, node in enumerate(proto.graph.node) for name in node.input}
        self.elements = {}
        for i, node in enumerate(evaluator.rt_nodes_):
            context = {"context": held} if node.need_context() else {}
            with np.errstate(all="ignore"):
                made = node.run(*[held[name] if name else None for name in node.input], **context)
            self.elements |= {n: np.size(x) for n, x in zip(node.output, made, strict=False)}
            held.update(zip(node.output, made, strict=False))
            for name in set(node.input) & set(held):
                if last[name] == i:
                    del held[name]
        return np.asarray(held[proto.graph.output[0].name])

    def _collect(self, target: ir.Value, known: dict[ir.Value, Array]) -> _Part:
        feeds: dict[str, Array] = {}
        nodes: dict[ir.Node, None] = {}
        seen: set[ir.Value] = set()
        stack: list[tuple[ir.Value, bool]] = [(target, False)]
        while stack:
            value, done = stack.pop()
            producer = value.producer()
            if done and producer is not None:
                nodes.setdefault(producer)
                continue
            if value in seen:
                continue
            seen.add(value)
            leaf = self._leaf(value, known)
            if leaf is not None:
                feeds[_name(value)] = leaf
                continue
            if producer is None:
                raise ProbeFailure(f"it depends on the data in '{value.name}'")
            if len(seen) > _MAX_NODES:
                raise ProbeFailure(f"its sub-graph has more than {_MAX_NODES} values")
            stack.append((value, True))
            stack += [(v, False) for v in producer.inputs if v is not None]
        return _Part(list(nodes), feeds)

    def _leaf(self, value: ir.Value, known: Mapping[ir.Value, Array]) -> Array | None:
        if value in known:
            return known[value]
        if value.const_value is not None:
            if value.const_value.size > _MAX_CONSTANT:
                raise ProbeFailure(f"it depends on the large constant '{value.name}'")
            return read_tensor(value.const_value)
        return self._known_shape(value)

    def _known_shape(self, value: ir.Value) -> Array | None:
        """The content of `Shape(x)` where the shape of x is known at these sizes."""
        producer = value.producer()
        if producer is None or producer.op_type != "Shape" or producer.inputs[0] is None:
            return None
        shape = self.shape_of(producer.inputs[0])
        if shape is None:
            return None
        start = producer.attributes.get_int("start", 0)
        end = producer.attributes.get_int("end", len(shape))
        return np.array(shape[start:end], np.int64)


def _name(value: ir.Value) -> str:
    return value.name or f"value_{id(value)}"


def _as_model(part: _Part, target: ir.Value, model: ir.Model) -> onnx.ModelProto:
    graph = onnx.GraphProto(name="probe")
    graph.node.extend(ir.to_proto(node) for node in part.nodes)
    for name, array in part.feeds.items():
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, array.shape))
    graph.output.append(onnx.ValueInfoProto(name=_name(target)))
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()],
        ir_version=model.ir_version,
    )


def ancestors(value: ir.Value, limit: int = 4000) -> set[ir.Value]:
    """All values that `value` is computed from, itself included; shapes do not count as use."""
    found: set[ir.Value] = set()
    stack = [value]
    while stack and len(found) < limit:
        current = stack.pop()
        if current in found:
            continue
        found.add(current)
        producer = current.producer()
        if producer is not None and producer.op_type not in {"Shape", "Size"}:
            stack += [v for v in producer.inputs if v is not None]
    return found


def data_inputs(value: ir.Value) -> set[ir.Value]:
    """The graph inputs whose contents (not only whose shapes) `value` depends on."""
    return {v for v in ancestors(value) if v.is_graph_input() and v.const_value is None}


def fixed_values(model: ir.Model) -> dict[ir.Value | None, bool]:
    """Values that no input's contents reach; True for those that an input's sizes reach."""
    fixed: dict[ir.Value | None, bool] = dict.fromkeys(model.graph.initializers.values(), False)
    for node in model.graph:
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type in {"Shape", "Size"}:
            fixed |= dict.fromkeys(node.outputs, True)
        elif all(v in fixed for v in inputs):
            fixed |= dict.fromkeys(node.outputs, any(fixed[v] for v in inputs))
    return fixed
