"""Run a graph over samples in stages, so that what is decided at one place is seen at the next.

Between stages only those values are kept that something later reads. A graph that changes behind
the place where the walk stands may be walked on: every stage runs the nodes as they are then. All
stages together cost one run of the graph, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Evaluator, Feeds

__all__ = ["Walk"]


class Walk:
    """Stands before a node of the main graph, with the values that the rest of it reads.

    Args:
        model: The graph, in topological order. Nodes before the place may not change.
        evaluate: Runs graphs.
        samples: Inputs.
    """

    def __init__(self, model: ir.Model, evaluate: Evaluator, samples: Sequence[Feeds]):
        self._model, self._evaluate = model, evaluate
        self._known: list[dict[str, Array]] = [dict(feeds) for feeds in samples]
        self._done: set[ir.Node] = set()

    def advance(self, node: ir.Node, name: str) -> Iterator[Array]:
        """Go to the place before `node`.

        Args:
            node: Of the main graph, further on.
            name: A value computed before it.

        Yields:
            The value, of each sample in turn; they must all be taken.
        """
        before, after = self._parted(node)
        alive = _read_by(after)
        made = [out for n in before for out in n.outputs]
        wanted = [v for v in made if v in alive and v.name != name]
        keep = {str(v.name) for v in alive} | {str(v.name) for v in wanted}
        target = next((v for v in made if v.name == name), None)
        outputs = [*wanted, *([target] if target is not None else [])]
        stage = _stage(self._model, before, outputs, self._known) if outputs else None
        self._done.update(before)
        fetch = [str(value.name) for value in outputs]
        feeds = [] if stage is None else [_fed(stage, known) for known in self._known]
        results = iter([]) if stage is None else self._evaluate(stage, feeds, fetch=fetch)
        for known in self._known:
            got = next(results, {})
            value = got[name] if name in got else known[name]
            known |= got
            for gone in set(known) - keep - {name}:
                del known[gone]
            yield value

    def divide(self, name: str, factors: Array) -> None:
        """Divide the channels of a value that is known: what makes it was changed since."""
        for known in self._known:
            if name in known:
                known[name] = known[name] / factors

    def _parted(self, node: ir.Node) -> tuple[list[ir.Node], list[ir.Node]]:
        """Nodes not run yet, up to `node`, and from it on."""
        left = [other for other in self._model.graph if other not in self._done]
        place = left.index(node)
        return left[:place], left[place:]


def _read_by(nodes: Sequence[ir.Node]) -> set[ir.Value]:
    """Values that nodes read, or graphs inside them, and do not make."""
    read: set[ir.Value] = set()
    for node in nodes:
        read.update(value for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
            for graph in graphs:
                read |= _read_by(list(graph)) | {v for v in graph.outputs if v is not None}
    return {value for value in read if not value.is_initializer()}


def _stage(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    known: Sequence[dict[str, Array]],
) -> ir.Model:
    """The nodes that `outputs` need, as a model whose inputs are values that are known."""
    needed: set[ir.Value] = set(outputs)
    chosen: list[ir.Node] = []
    for node in reversed(nodes):
        if any(out in needed for out in node.outputs):
            chosen.append(node)
            needed |= _read_by([node]) | set(_initializers([node]))
    chosen.reverse()
    made = {out for node in chosen for out in node.outputs}
    inputs = [v for v in needed if v not in made and not v.is_initializer()]
    inputs.sort(key=lambda value: str(value.name))
    constants = list(dict.fromkeys(_initializers(chosen)))
    view = ir.GraphView(
        inputs,
        list(outputs),
        nodes=chosen,
        initializers=constants,
        opset_imports=model.graph.opset_imports,
        name="stage",
    )
    graph = view.clone()
    for value in graph.inputs:
        array = known[0].get(str(value.name))
        if array is not None:
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([f"{value.name}_{axis}" for axis in range(array.ndim)])
    for value in graph.outputs:
        value.type = value.shape = None  # the runtime infers what nobody may have inferred yet
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def _initializers(nodes: Sequence[ir.Node]) -> Iterator[ir.Value]:
    for node in nodes:
        yield from (v for v in node.inputs if v is not None and v.is_initializer())
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _initializers(list(attribute.value))


def _fed(stage: ir.Model, known: dict[str, Array]) -> Feeds:
    names = [str(value.name) for value in stage.graph.inputs]
    return {name: np.ascontiguousarray(known[name]) for name in names if name in known}
