"""Is this still a well-formed graph? Asked after every pass."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.base import Pass
from optc.core.errors import ModelFileError, PassContractError
from optc.core.hooks import Hook, Step

__all__ = ["VerifyHook", "problems", "verify_model"]


def verify_model(model: ir.Model) -> None:
    """Check the structure of a graph; reads no weights.

    1. A value's name is not used twice where both are visible, nor a node's in one graph.
    2. A node reads graph inputs, initializers and outputs of earlier nodes only.
    3. An initializer has data.
    4. A graph output is produced, once, and has an element type.
    5. A node's domain is imported, and if model-local functions share its domain, one is its own.
    6. The ONNX checker agrees.

    Raises:
        PassContractError: It is not so; the message is the first problem and their number.
    """
    found = list(problems(model))
    if not found:
        found = list(_checker(model))
    if found:
        more = f" (and {len(found) - 1} more problems)" if len(found) > 1 else ""
        raise PassContractError(f"{found[0]}{more}")


def problems(model: ir.Model) -> Iterator[str]:
    """What is wrong with the structure, one sentence each (cases 1 to 5)."""
    yield from _graph(model.graph, _Scope())
    yield from _outputs(model.graph)
    for node in model.graph.all_nodes():
        yield from _operator(node, model, model.opset_imports)
    for key, function in model.functions.items():
        name = "::".join(part for part in key if part)
        imports = function.opset_imports
        found = [*_graph(function.graph, _Scope())]
        for node in function.all_nodes():
            found += _operator(node, model, imports)
        yield from (f"function {name}: {problem}" for problem in found)


class _Scope:
    """What is visible at one point of a graph."""

    def __init__(self) -> None:
        self.values: set[ir.Value] = set()
        self.names: set[str] = set()

    def define(self, value: ir.Value) -> Iterator[str]:
        """Make `value` visible; case 1."""
        if value.name and value.name in self.names:
            yield f"two values are named '{value.name}'"
        self.values.add(value)
        self.names.add(value.name or "")

    def forget(self, values: list[ir.Value]) -> None:
        """Leave a subgraph: its siblings may use its names again."""
        self.values.difference_update(values)
        self.names.difference_update(value.name or "" for value in values)


def _graph(graph: ir.Graph, scope: _Scope) -> Iterator[str]:
    own = list(dict.fromkeys([*graph.inputs, *graph.initializers.values()]))
    for value in own:
        yield from scope.define(value)
    for value in graph.initializers.values():
        if value.const_value is None:
            yield f"the initializer '{value.name}' has no data"
    nodes: set[str] = set()
    for node in graph:
        yield from _node(node, scope, nodes)
        for subgraph in _subgraphs(node):
            yield from _graph(subgraph, scope)
        for value in node.outputs:
            yield from scope.define(value)
        own += node.outputs
    for output in graph.outputs:
        if output not in scope.values:
            yield f"the output '{output.name}' is produced by nothing"
    scope.forget(own)


def _node(node: ir.Node, scope: _Scope, names: set[str]) -> Iterator[str]:
    if node.name and node.name in names:
        yield f"two nodes are named '{node.name}'"
    names.add(node.name or "")
    for value in node.inputs:
        if value is not None and value not in scope.values:
            yield f"{_words(node)} reads '{value.name}', which nothing before it produces"


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attribute.as_graphs()


def _outputs(graph: ir.Graph) -> Iterator[str]:
    seen: set[ir.Value] = set()
    for output in graph.outputs:
        if output in seen:
            yield f"'{output.name}' is an output twice"
        if output.type is None:
            yield f"the output '{output.name}' has no element type"
        seen.add(output)


def _operator(node: ir.Node, model: ir.Model, imports: dict[str, int]) -> Iterator[str]:
    if node.domain not in imports:
        yield f"{_words(node)} is of the domain '{node.domain}', which is not imported"
    local = {domain for domain, _, _ in model.functions}
    if node.domain in local and node.op_identifier() not in model.functions:
        overload = f" with overload '{node.overload}'" if node.overload else ""
        yield f"{_words(node)} calls a function{overload} that the model does not have"


def _words(node: ir.Node) -> str:
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"the {kind} node '{node.name}'"


def _checker(model: ir.Model) -> Iterator[str]:
    """Case 6, on a copy in which the weights are inputs: nothing is read, nothing is large."""
    copy = model.clone()
    common.LiftSubgraphInitializersToMainGraphPass()(copy)
    graph = copy.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None:
            value.type = value.type or ir.TensorType(tensor.dtype)
            value.shape = value.shape or ir.Shape(tensor.shape.numpy())
        del graph.initializers[value.name or ""]
        if value not in graph.inputs:
            graph.inputs.append(value)
    try:
        onnx.checker.check_model(ir.to_proto(copy))
    except onnx.checker.ValidationError as error:
        yield f"the ONNX checker says: {str(error).splitlines()[0]}"


class VerifyHook(Hook):
    """Verifies the structure of the graph before the first pass and after each."""

    def start(self, model: ir.Model) -> None:
        """See that what came in is well-formed: if not, no pass is to blame."""
        try:
            verify_model(model)
        except PassContractError as error:
            raise ModelFileError(f"the model is not well-formed: {error.problem}") from error

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        """See that the pass left a well-formed graph."""
        try:
            verify_model(model)
        except PassContractError as error:
            raise PassContractError(error.problem, where=f"pass '{p.name}'") from error
