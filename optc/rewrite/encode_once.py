"""What a decoder takes from an encoder is computed once: the encoder moves into a branch of `If`.

    cond = (tokens in the first past cache == 0)
    present = If(cond) { then: encoder, keys and values     else: Identity(past) }

The graph stays one ordinary ONNX model. A first call hands in caches of 0 tokens; later calls hand
in what came out, and the encoder is skipped, whatever its inputs hold then.

Code that works on the main graph sees the encoder there while it is *in line*: the `If` is replaced
by one `Concat(past, new)` per cache, which is the same for a first call, and put back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.ir.interface import cache_ports, ports

__all__ = ["computed_again", "encode_once", "encoder_in_line", "keep"]

_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "FlashAttention", "Einsum"}
_PRODUCTS |= {"LSTM", "GRU", "RNN", "Loop", "Scan", "If"}
_NAME = "encode_once"


def computed_again(
    model: ir.Model, kept: Sequence[ir.Value], encoder: Container[ir.Node]
) -> list[ir.Node]:
    """Products of an encoder that a cache of `kept` does not save, as the decoder needs them too.

    Args:
        model: The model, in topological order; not changed.
        kept: Values that a cache is to hold.
        encoder: What does not depend on the decoder's tokens.
    """
    inside = _only_for(model, kept)
    products = [node for node in model.graph if node.op_type in _PRODUCTS and node in encoder]
    return [node for node in products if node not in inside]


def keep(
    model: ir.Model, news: Sequence[ir.Value], pasts: Sequence[ir.Value], presents: Sequence[str]
) -> list[ir.Node]:
    """Let values come out of caches, in line; `encode_once` makes it so.

    Args:
        model: The model, in topological order; outputs are added. What is not the encoder's own
            reads the cached value from now on.
        news: What is computed of the encoder's inputs, each [B,H,T,D].
        pasts: The graph's inputs, each [B,H,T',D]; T' = 0 at a first call.
        presents: Names of the outputs.

    Returns:
        The nodes that join past and new.
    """
    inside = _only_for(model, news)
    readers = {new: [use for use in new.uses() if use.node not in inside] for new in news}
    joins = []
    for new, past, present in zip(news, pasts, presents, strict=True):
        node = _join(past, new, f"{present}_kept")
        output = node.outputs[0]
        output.name, output.type, output.shape = present, new.type, _present_shape(past)
        model.graph.append(node)
        model.graph.outputs.append(output)
        for user, slot in readers.pop(new, []):
            user.replace_input_with(slot, output)
        joins.append(node)
    return joins


def _join(past: ir.Value, new: ir.Value, name: str) -> ir.Node:
    return ir.node("Concat", [past, new], {"axis": 2}, name=name)


def _present_shape(past: ir.Value) -> ir.Shape:
    dims = list(past.shape or ())
    return ir.Shape([*dims[:2], "encoder_sequence", *dims[3:]])


def encode_once(model: ir.Model, kept: Sequence[ir.Node]) -> None:
    """Move what the nodes of `keep`, and nothing else, need into a branch that a cache skips."""
    common.RemoveUnusedNodesPass()(model)  # what is read by nobody would be held outside by it
    common.TopologicalSortPass()(model)
    news = [_input(node, 1) for node in kept]
    only = _only_for(model, news)
    inside = [node for node in model.graph if node in only]
    pasts = [_input(node, 0) for node in kept]
    first = kept[0]
    condition = _is_empty(model, pasts[0], before=first)
    model.graph.remove(inside)
    then = _branch("compute", inside, news)
    other = _branch("reuse", [], pasts)
    node = ir.node(
        "If",
        [condition],
        {"then_branch": then, "else_branch": other},
        num_outputs=len(kept),
        name=_NAME,
    )
    model.graph.insert_before(first, node)
    for made, old in zip(node.outputs, kept, strict=True):
        _hand_over(old.outputs[0], made)
    model.graph.remove(list(kept), safe=True)
    common.TopologicalSortPass()(model)


@contextlib.contextmanager
def encoder_in_line(model: ir.Model) -> Iterator[None]:
    """The encoder of a graph with caches in the main graph, as long as the context lasts.

    Where there is no such encoder, nothing happens. When an error leaves the context, the graph is
    left as it then is.
    """
    node = next((n for n in model.graph if _encodes_once(n)), None)
    kept = [] if node is None else _put_in_line(model, node)
    yield
    if kept:
        encode_once(model, kept)


def _encodes_once(node: ir.Node) -> bool:
    """Whether it is an `If` that hands caches of an encoder through in the one case."""
    if node.op_type != "If" or node.domain:
        return False
    other = list(node.attributes["else_branch"].as_graph())
    pasts = [n.inputs[0] for n in other if n.op_type == "Identity"]
    caches = cache_ports(ports(v for v in pasts if v is not None and v.is_graph_input()))
    return len(caches) == len(other) and all(cache.is_cross for cache in caches)


def _put_in_line(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    then = node.attributes["then_branch"].as_graph()
    other = node.attributes["else_branch"].as_graph()
    news = list(then.outputs)
    pasts = [_input(_producer(value), 0) for value in other.outputs]
    then.outputs.clear()
    for value in list(then.initializers.values()):
        del then.initializers[str(value.name)]
        model.graph.register_initializer(value)
    inner = list(then)
    then.remove(inner)
    model.graph.insert_before(node, inner)
    kept = []
    for old, new, past in zip(node.outputs, news, pasts, strict=True):
        join = _join(past, new, f"{old.name}_kept")
        model.graph.insert_before(node, join)
        _hand_over(old, join.outputs[0])
        kept.append(join)
    model.graph.remove(node, safe=True)
    return kept


def _only_for(model: ir.Model, kept: Sequence[ir.Value]) -> set[ir.Node]:
    """The producers of `kept`, and nodes whose outputs go nowhere else in the end."""
    roots = {value.producer() for value in kept}
    inside: set[ir.Node] = set()
    for node in reversed(model.graph):
        users = [use.node for value in node.outputs for use in value.uses()]
        is_output = any(value.is_graph_output() for value in node.outputs)
        leads_there = bool(users) and all(user in inside for user in users) and not is_output
        if node in roots or leads_there:
            inside.add(node)
    return inside


def _is_empty(model: ir.Model, past: ir.Value, *, before: ir.Node) -> ir.Value:
    """Whether a cache holds 0 tokens, bool []."""
    held = ir.node("Shape", [past], {"start": 2, "end": 3}, name=f"{_NAME}_held")
    zero = ir.node("Constant", [], {"value_ints": [0]}, name=f"{_NAME}_zero")
    empty = ir.node("Equal", [held.outputs[0], zero.outputs[0]], name=f"{_NAME}_is_empty")
    all_of_it = ir.node("Squeeze", [empty.outputs[0]], name=f"{_NAME}_all_empty")
    nodes = [held, zero, empty, all_of_it]
    for node in nodes:
        node.outputs[0].name = str(node.name)
    model.graph.insert_before(before, nodes)
    return all_of_it.outputs[0]


def _branch(label: str, nodes: list[ir.Node], values: Sequence[ir.Value]) -> ir.Graph:
    """A branch that gives `values`: those it does not compute, or gives already, as copies."""
    outputs: list[ir.Value] = []
    made = {output for node in nodes for output in node.outputs}
    for index, value in enumerate(values):
        if value not in made or value in outputs:
            name = f"{_NAME}_{label}_{index}"
            copy = ir.node("Identity", [value], name=name)
            copy.outputs[0].name, copy.outputs[0].type = name, value.type
            copy.outputs[0].shape = value.shape
            nodes = [*nodes, copy]
            value = copy.outputs[0]
        outputs.append(value)
    return ir.Graph([], outputs, nodes=nodes, name=f"{_NAME}_{label}")


def _hand_over(old: ir.Value, new: ir.Value) -> None:
    """Users and outputs of the graph that have `old` get `new`, under the same name."""
    name, old.name = old.name, f"{old.name}_before"
    new.name, new.type, new.shape = name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _input(node: ir.Node | None, slot: int) -> ir.Value:
    value = node.inputs[slot] if node is not None else None
    assert value is not None
    return value


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
