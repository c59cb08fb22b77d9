"""Which caches a lowered graph may update where they are: one memory for past and present."""

from __future__ import annotations

import onnx_ir as ir

from optc.ir.flash_attention import INPUTS, read_spec
from optc.ir.flash_attention import NAME as FLASH_ATTENTION
from optc.ir.interface import cache_ports, ports
from optc.targets.ort_cache import IN_PLACE

__all__ = ["caches_in_place", "note_in_place"]

_READ_NO_CONTENT = {"Shape", "Size"}


def note_in_place(model: ir.Model) -> None:
    """Write into a lowered graph's metadata which caches it may update where they are."""
    model.metadata_props.pop(IN_PLACE, None)  # whatever the model came with
    found = caches_in_place(model)
    if found:
        model.metadata_props[IN_PLACE] = " ".join(sorted(found))


def caches_in_place(model: ir.Model) -> frozenset[str]:
    """Cache inputs of a lowered graph that may be one memory with their outputs.

    That is so where the input has one reader, which is known to write new tokens into it, and
    gives the output of the same cache:

    1. `GroupQueryAttention`, which copies nothing when both are one memory;
    2. `TensorScatter`, by itself or in the function body of a static cache;
    3. `If`, both of whose branches do.

    What an encoder gives comes out of an `If`, from the encoder or as it came in: from the second
    call on that is a copy of a buffer onto itself, which the runtime leaves out.
    """
    outputs = {value.name: value for value in model.graph.outputs}
    found = []
    for cache in cache_ports(ports(model.graph.inputs)):
        past = next(value for value in model.graph.inputs if value.name == cache.past)
        present = outputs.get(cache.present)
        if present is None or past.is_graph_output():
            continue
        if _updates(past, present) or (cache.is_cross and _is_branched(present)):
            found.append(cache.past)
    return frozenset(found)


def _updates(past: ir.Value, present: ir.Value) -> bool:
    """Whether all that reads what is in `past` writes into it and gives `present`."""
    uses = [use for use in past.uses() if use.node.op_type not in _READ_NO_CONTENT]
    made = _makers(present)
    return len(uses) == len(made) and all(
        any(use.node is node and (use.idx, index) in _pairs(node) for use in uses)
        for node, index in made
    )


def _makers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """The nodes that give a value, with the number of the output: one per branch of an `If`."""
    node, index = value.producer(), value.index()
    if node is None or index is None:
        return []
    if node.op_type != "If":
        return [(node, index)]
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    return [made for branch in branches for made in _makers(branch.outputs[index])]


def _is_branched(present: ir.Value) -> bool:
    node = present.producer()
    return node is not None and node.op_type == "If"


def _pairs(node: ir.Node) -> set[tuple[int, int]]:
    """Inputs and outputs of a node that may be one memory."""
    if node.op_type == "GroupQueryAttention":
        return {(3, 1), (4, 2)}
    if node.op_type == "TensorScatter":
        return {(0, 0)}
    # A growing int8 cache is read whole before it is written, so one memory is right for it too.
    if node.op_type == FLASH_ATTENTION and (
        read_spec(node).cache == "static" or read_spec(node).int8
    ):
        return {(INPUTS.index("past_key"), 1), (INPUTS.index("past_value"), 2)}
    return set()
