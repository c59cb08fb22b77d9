"""Run a graph over samples in stages, so that what is decided at one place is seen at the next.

Between stages only those values are kept that something later reads. A graph that changes behind
the place where the walk stands may be walked on: every stage runs the nodes as they are then. All
stages together cost one run of the graph, whatever their number, and as much besides: a stage
looks at the nodes between two places, and at who reads what they read and make.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Evaluator, Feeds
from optc.ir.interface import cache_ports, complete_feeds, ports

__all__ = ["Walk"]


class Walk:
    """Stands before a node of the main graph, with the values that the rest of it reads.

    Args:
        model: The graph, in topological order. Nodes before the place may not change; behind it
            nodes may be added, and inputs replaced.
        evaluate: Runs graphs.
        samples: Inputs.
    """

    def __init__(self, model: ir.Model, evaluate: Evaluator, samples: Sequence[Feeds]):
        self._model, self._evaluate = model, evaluate
        self._known: list[dict[str, Array]] = _with_caches(model, samples)
        self._nodes = list(model.graph)
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._owners: dict[object, ir.Node] = {
            graph: node for node in self._nodes for graph in _inner(node)
        }
        made = [*model.graph.inputs, *(out for node in self._nodes for out in node.outputs)]
        self._values = {str(value.name): value for value in made}
        self._place = 0
        self._done: set[ir.Node] = set()
        self._last: set[ir.Value] = set()

    def advance(self, node: ir.Node, name: str) -> Iterator[Array]:
        """Go to the place before `node`, when the first value is taken and not before.

        Args:
            node: Of the main graph, further on.
            name: A value computed before it.

        Yields:
            The value, of each sample in turn; they must all be taken.
        """
        passed = self._nodes[self._place : self._places[node]]
        self._place = max(self._place, self._places[node])
        self._done.update(passed)
        target = self._values[name]
        outputs = [v for n in passed for v in n.outputs if v is not target and self._is_read(v)]
        if name not in self._known[0]:
            outputs.append(target)
        ran = self._behind(outputs)
        self._done.update(ran)
        outputs[:0] = [v for n in ran for v in n.outputs if v not in outputs and self._is_read(v)]
        touched = {v for n in (*passed, *ran) for v in (*_reads(n), *n.outputs)} | self._last
        gone = [str(v.name) for v in touched if v is not target and not self._is_read(v)]
        self._last = {target}
        for known, got in zip(self._known, self._results(ran, outputs), strict=True):
            known |= got
            for old in gone:
                known.pop(old, None)
            yield known[name]

    def divide(self, name: str, factors: Array) -> None:
        """Divide the channels of a value that is known: what makes it was changed since."""
        for known in self._known:
            if name in known:
                divided = known[name] / factors
                known[name] = divided.astype(known[name].dtype)

    def _is_read(self, value: ir.Value) -> bool:
        """Whether a node that has not been run reads a value; the latest readers come first."""
        users = (user for user, _ in reversed(tuple(value.uses())))
        return any(self._owners.get(user.graph, user) not in self._done for user in users)

    def _behind(self, outputs: Sequence[ir.Value]) -> list[ir.Node]:
        """Nodes that `outputs` need and nothing known replaces, each behind what it reads."""
        found: dict[ir.Node, None] = {}
        stack = [(value, False) for value in reversed(outputs)]
        while stack:
            value, is_ready = stack.pop()
            node = value.producer()
            if node is None or node in found or str(value.name) in self._known[0]:
                continue
            if is_ready:
                found[node] = None
                continue
            stack.append((value, True))
            stack += [(read, False) for read in reversed(list(_reads(node)))]
        return list(found)

    def _results(
        self, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]
    ) -> Iterator[dict[str, Array]]:
        """The values of `outputs`, for each sample."""
        if not outputs:
            return iter([{} for _ in self._known])
        stage = _stage(self._model, nodes, outputs, self._known[0])
        names = [str(value.name) for value in stage.graph.inputs]
        feeds = (
            {name: np.asarray(known[name], order="C") for name in names if name in known}
            for known in self._known
        )
        return self._evaluate(stage, feeds, fetch=[str(value.name) for value in outputs])


def _with_caches(model: ir.Model, samples: Sequence[Feeds]) -> list[dict[str, Array]]:
    """What the graph takes, of each sample; empty caches are there once for each batch.

    They are made here because a stage that does not take the tokens says nothing of the batch.
    """
    inputs, empty = ports(model.graph.inputs), dict[tuple[str, int], Array]()
    pasts, whole = [cache.past for cache in cache_ports(inputs)], []
    for feeds in samples:
        known = complete_feeds(inputs, feeds)
        for past in pasts:
            if past not in feeds:
                known[past] = empty.setdefault((past, len(known[past])), known[past])
        whole.append(known)
    return whole


def _inner(node: ir.Node) -> Iterator[ir.Graph]:
    """Graphs inside a node, and inside those."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        graphs: Iterable[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            yield graph
            yield from (deeper for inside in graph for deeper in _inner(inside))


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the node's own graph that it reads, or graphs inside it."""
    readers = [node, *(inside for graph in _inner(node) for inside in graph)]
    for reader in readers:
        yield from (v for v in reader.inputs if v is not None and v.graph is node.graph)


def _stage(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    known: dict[str, Array],
) -> ir.Model:
    """The nodes, as a model whose inputs are values that are known."""
    made = {out for node in nodes for out in node.outputs}
    read = dict.fromkeys(v for node in nodes for v in _reads(node) if v not in made)
    inputs = [value for value in read if not value.is_initializer()]
    inputs.sort(key=lambda value: str(value.name))
    view = ir.GraphView(
        inputs,
        list(outputs),
        nodes=nodes,
        initializers=[value for value in read if value.is_initializer()],
        opset_imports=model.graph.opset_imports,
        name="stage",
    )
    graph = view.clone()
    for value in graph.inputs:
        array = known.get(str(value.name))
        if array is not None:
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([f"{value.name}_{axis}" for axis in range(array.ndim)])
    for value in graph.outputs:
        value.type = value.shape = None  # the runtime infers what nobody may have inferred yet
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)
