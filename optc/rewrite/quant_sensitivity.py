"""How much each unit of a plan, alone, moves the outputs: measured, many units in one run.

A batch of copies of one sample goes through the float graph. In copy u, and only there, the
products of unit u are taken from quantised operands:

    y = Concat(y[:u], quantised product of x[u:u+1], y[u+1:])

So one run over the model measures as many units as the batch has copies, and not one. What the
float graph answers is asked once, before. A last copy is left as it is: where it moves, or where
the graph takes no batch, copies are not independent and nothing is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.context import Array, Context, Evaluator, Feeds
from optc.core.errors import SampleError, UnsupportedError
from optc.ir.interface import LOGITS
from optc.rewrite.evenly import evenly
from optc.rewrite.quant_apply import write_plan
from optc.rewrite.quant_drift import distance, output_names
from optc.rewrite.quant_nodes import NodeWriter
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import Site, find_sites
from optc.rewrite.quant_units import Unit

__all__ = ["sensitivities"]

# Outputs of one run over all copies, as float32: what it takes beside the running graph.
_OUTPUT_BYTES = 192 << 20
# Tokens of a sample, and how few they may become where a vocabulary is so large that fewer than
# _UNITS units would fit one run: writing and opening the graph once for each few would cost more
# than running it.
_TOKENS = 64
_FEWEST_TOKENS = 8
_UNITS = 15
# Samples, from both ends of the data: of an export, paragraphs, and what the model wrote itself.
_SAMPLES = 2
# Share of the largest cost that the untouched copy may move by round-off, as kernels sum in another
# order for other shapes; copies that mix move it about as far as themselves.
_MOVED = 1e-3
_REFUSALS = (SampleError, UnsupportedError)
"""What an evaluator raises for a batch that the graph does not take: its inputs do not fit, or the
runtime fails in the middle."""


def sensitivities(
    model: ir.Model, units: Sequence[Unit], plan: Plan, ctx: Context, samples: Sequence[Feeds]
) -> dict[str, float]:
    """Drift that each unit causes by itself, in the unit of the drift of the whole graph.

    Args:
        model: The float graph; not changed.
        units: What to measure.
        plan: How they are quantised.
        ctx: Has the evaluator.
        samples: Calibration inputs; the first tokens of a few of them are used.

    Returns:
        Drift by name of the unit; empty where copies in one batch are not independent, or the
        graph does not take a batch.
    """
    tokens = _tokens(model)
    cut = [_start_of(feeds, tokens) for feeds in _spread(samples)]
    if ctx.evaluate is None or not cut or not all(map(_is_single, cut)):
        return {}
    wanted = _answers(model, cut, ctx.evaluate)
    if wanted is None:
        return {}
    count = _units_at_once(wanted[0])
    found: dict[str, float] = {}
    for start in range(0, len(units), count):
        part = units[start : start + count]
        drifts = _measure(_trial(model, part, plan), len(part), ctx.evaluate, cut, wanted)
        if drifts is None:
            return {}
        found |= {unit.name: drift for unit, drift in zip(part, drifts, strict=True)}
        ctx.progress("measuring sites", len(found), len(units))
    return found


def _spread(samples: Sequence[Feeds]) -> list[Feeds]:
    return [samples[index] for index in evenly(len(samples), _SAMPLES)]


def _tokens(model: ir.Model) -> int:
    """Tokens to take of a sample: fewer where the outputs are so wide that few copies would fit."""
    names = output_names(model)
    shapes = [out.shape for out in model.graph.outputs if out.name in names]
    last = [shape[-1] for shape in shapes if shape is not None and len(shape)]
    width = sum(size for size in last if isinstance(size, int))
    fitting = _OUTPUT_BYTES // max(1, 4 * width * (_UNITS + 1))
    return min(_TOKENS, max(_FEWEST_TOKENS, fitting))


def _start_of(feeds: Feeds, tokens: int) -> Feeds:
    """The first tokens of a sample whose inputs are all [B,S] integers; else the sample."""
    if any(array.ndim != 2 or array.dtype.kind not in "iu" for array in feeds.values()):
        return feeds
    return {name: array[:, :tokens] for name, array in feeds.items()}


def _is_single(feeds: Feeds) -> bool:
    return all(array.ndim and array.shape[0] == 1 for array in feeds.values())


def _answers(
    model: ir.Model, samples: Sequence[Feeds], evaluate: Evaluator
) -> list[dict[str, Array]] | None:
    """The float graph's outputs for each sample; None where it takes no batch of two."""
    names = output_names(model)
    try:
        *wanted, twice = evaluate(model, [*samples, _tiled(samples[0], 2)], fetch=names)
    except _REFUSALS:
        return None
    return wanted if all(twice[name].shape[:1] == (2,) for name in names) else None


def _units_at_once(alone: dict[str, Array]) -> int:
    """How many units fit one batch, beside the copy that is left alone."""
    held = sum(4 * array.size for array in alone.values())
    return max(1, _OUTPUT_BYTES // max(1, held) - 1)


def _tiled(feeds: Feeds, count: int) -> Feeds:
    return {name: np.repeat(array, count, axis=0) for name, array in feeds.items()}


def _measure(
    trial: ir.Model,
    units: int,
    evaluate: Evaluator,
    samples: Sequence[Feeds],
    wanted: Sequence[dict[str, Array]],
) -> list[float] | None:
    """Drift of each unit of a trial; None where its copies are not independent."""
    copies = units + 1
    names = list(wanted[0])
    moved = np.zeros((copies, len(names)))
    size = np.zeros((copies, len(names)))
    batches = [_tiled(feeds, copies) for feeds in samples]
    try:
        for want, got in zip(wanted, evaluate(trial, batches, fetch=names), strict=True):
            for index, name in enumerate(names):
                for copy in range(copies):
                    added = distance(name, _rows(got[name][copy]), _rows(want[name][0]))
                    moved[copy, index] += added[0]
                    size[copy, index] += added[1]
    except _REFUSALS:
        return None
    drifts = (moved / np.maximum(size, np.finfo(np.float64).tiny)).max(axis=1)
    drifts = np.maximum(drifts, 0.0) if names == [LOGITS] else np.sqrt(drifts)
    *of_units, untouched = [float(drift) for drift in drifts]
    # the last copy differs from the float graph by round-off alone, or copies mix
    return None if untouched > _MOVED * max([*of_units, 1e-9]) + 1e-9 else of_units


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1] if array.ndim else 1).astype(np.float32, copy=False)


def _trial(model: ir.Model, units: Sequence[Unit], plan: Plan) -> ir.Model:
    """The float graph in which unit u is quantised in copy u of the batch."""
    trial = model.clone()
    places = {site.name: site for site in find_sites(trial).sites}
    writer = NodeWriter(trial)
    copies = len(units) + 1
    quantised: list[Site] = []
    fits, tokens, factors = dict(plan.activations), set(plan.tokens), dict(plan.factors)
    numbers = _Numbers(writer)
    for index, unit in enumerate(units):
        inner = _Copy(writer, numbers, trial.graph, index, copies)
        for site in (places[s.name] for s in unit.sites):
            new = inner.quantised(site)
            quantised.append(new)
            if new.activation is None:
                continue
            name = str(new.activation.name)
            if unit.name in fits:
                fits[name] = fits[unit.name]
            if unit.name in tokens:
                tokens.add(name)
            if unit.name in factors:
                factors[name] = factors[unit.name]
    narrow = dataclasses.replace(plan, activations=fits, tokens=frozenset(tokens), factors=factors)
    write_plan(writer, quantised, narrow)
    common.RemoveUnusedNodesPass()(trial)
    return trial


class _Numbers:
    """Constants [1] of a graph, each there once, int64."""

    def __init__(self, writer: NodeWriter):
        self._writer = writer
        self._known: dict[int, ir.Value] = {}

    def of(self, number: int) -> ir.Value:
        """The constant that holds `number`."""
        if number not in self._known:
            tensor = ir.Tensor(np.array([number], np.int64))
            self._known[number] = self._writer.constant(f"copy_{number}", tensor)
        return self._known[number]


class _Copy:
    """Writes what happens in one copy of the batch."""

    def __init__(
        self, writer: NodeWriter, numbers: _Numbers, graph: ir.Graph, index: int, copies: int
    ):
        self._writer, self._numbers, self._graph = writer, numbers, graph
        self._index, self._copies = index, copies
        self._rows: dict[ir.Value, ir.Value] = {}

    def quantised(self, site: Site) -> Site:
        """A second node for this copy alone; the old output is put together of both."""
        old = site.node
        slot = 1 if site.activation is None else 0
        source = old.inputs[slot]
        if source is None:
            raise ValueError(f"'{site.name}' has no operand")
        if source not in self._rows:
            self._rows[source] = self._cut(source, self._index, self._index + 1, before=old)
        output = old.outputs[0]
        whole = self._node(old.op_type, old.inputs, output, old, old.attributes.values())
        inputs = [self._rows[source] if k == slot else v for k, v in enumerate(old.inputs)]
        one = self._node(old.op_type, inputs, output, old, old.attributes.values())
        first = self._cut(whole, 0, self._index, before=old)
        last = self._cut(whole, self._index + 1, self._copies, before=old)
        axis = ir.AttrInt64("axis", 0)
        joined = self._node("Concat", [first, one, last], output, old, [axis])
        joined.shape = output.shape
        producer = joined.producer()
        if producer is not None:
            ir.convenience.replace_nodes_and_values(self._graph, old, [old], [], [output], [joined])
        node = one.producer()
        if node is None:
            raise ValueError(f"'{one.name}' has no producer")
        return Site(node, site.weight, site.axis, None if slot else self._rows[source])

    def _cut(self, value: ir.Value, start: int, stop: int, *, before: ir.Node) -> ir.Value:
        """Copies `start` to `stop` along the first axis, which may count tokens of them too."""
        length = self._node("Shape", [value], value, before, [ir.AttrInt64("end", 1)])
        length.type = ir.TensorType(ir.DataType.INT64)
        ends = []
        for place in (start, stop):
            scaled = self._node("Mul", [length, self._numbers.of(place)], length, before)
            ends.append(self._node("Div", [scaled, self._numbers.of(self._copies)], length, before))
        return self._node("Slice", [value, *ends, self._numbers.of(0)], value, before)

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        before: ir.Node,
        attributes: Iterable[ir.Attr] = (),
    ) -> ir.Value:
        node = ir.Node("", op, list(inputs), list(attributes))
        value = self._writer.insert(node, f"{like.name}_copy", like, before=before)
        value.shape = None
        return value
