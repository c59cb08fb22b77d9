"""`kv:logits=last`: what only the logits read is computed for the last token of each row.

Going up from `logits`, every node belongs to the *tail* that treats each token by itself and whose
results nothing outside the tail reads: the product with the vocabulary, the last norm, the
feed-forward part of the last layer. Attention ends it, and so does whatever else needs every token.
The values that enter the tail, [B,S,...], are cut down to one token of each row by `GatherND`.

Reshapes in the tail are written anew so that they fit any number of tokens: `every_token` turns the
graph back into one that answers for all of them, which is what calibration wants to see.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.errors import PassContractError
from optc.ir.constants import constant
from optc.ir.elementwise import ELEMENTWISE
from optc.ir.insert import Insert
from optc.ir.interface import DECODER_TOKENS, LOGITS, NEW_LENGTHS, TOKENS
from optc.ir.probe import ancestors

__all__ = ["Tail", "every_token", "find_again", "find_tail", "keep_last_tokens"]

_FIRST_ONLY = {"MatMul", "Gemm", "QuantizeLinear", "DequantizeLinear"}
_FROM_AXIS = {"LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Concat", "Split"}
_PRODUCTS = {"MatMul", "Gemm"}
_SAMPLES = ((5, 7), (11, 3))  # sizes at which an axis B*S is told from others


@dataclasses.dataclass(frozen=True)
class Tail:
    """The nodes that only serve the logits, token by token.

    Attributes:
        nodes: Its nodes, in graph order.
        entries: The values [B,S,...] that enter it.
        batch: Symbol of the batch.
        sequence: Symbol of the number of tokens.
    """

    nodes: tuple[ir.Node, ...]
    entries: tuple[ir.Value, ...]
    batch: str
    sequence: str


def find_tail(model: ir.Model, batch: str, sequence: str) -> Tail | str:
    """Find the tail of a graph with an output `logits`.

    Args:
        model: The graph; not changed.
        batch: Symbol of the batch.
        sequence: Symbol of the number of tokens.

    Returns:
        The tail; a sentence why there is none, otherwise.
    """
    logits = next(value for value in model.graph.outputs if value.name == LOGITS)
    axes = _Axes(batch, sequence)
    if axes.lead(logits) != 2:
        return f"'{LOGITS}' has shape {logits.shape}, which is not one row for each token"
    tail: set[ir.Node] = set()
    for node in reversed(model.graph):
        if _only_serves(node, tail, logits) and axes.treats_alone(node):
            tail.add(node)
    _drop_unfit(tail, axes, logits)
    if not any(node.op_type in _PRODUCTS for node in tail):
        maker = logits.producer()
        op = maker.op_type if maker is not None else "input"
        return f"no product that only '{LOGITS}' needs was found in front of it (it is a {op})"
    nodes = tuple(node for node in model.graph if node in tail)
    entries = dict.fromkeys(v for node in nodes for v in axes.entries(node, tail))
    return Tail(nodes, tuple(entries), batch, sequence)


def find_again(model: ir.Model, tail: Tail) -> Tail:
    """The tail of a graph where other values took the place of some that enter it.

    Raises:
        PassContractError: There is none any more.
    """
    found = find_tail(model, tail.batch, tail.sequence)
    if isinstance(found, str):
        raise PassContractError(found, where=LOGITS)
    return found


def _only_serves(node: ir.Node, tail: set[ir.Node], logits: ir.Value) -> bool:
    """Whether nothing outside the tail reads what `node` gives."""
    return all(
        (value is logits or not value.is_graph_output())
        and all(use.node in tail for use in value.uses())
        for value in node.outputs
    )


def _drop_unfit(tail: set[ir.Node], axes: _Axes, logits: ir.Value) -> None:
    """Move the beginning of the tail down to where tokens of a row can be picked."""
    while True:
        unfit = [
            node
            for node in tail
            if not _only_serves(node, tail, logits)
            or any(axes.lead(value) != 2 for value in axes.entries(node, tail))
        ]
        if not unfit:
            return
        tail.difference_update(unfit)


class _Axes:
    """What axes values have, by the symbols of batch and sequence."""

    def __init__(self, batch: str, sequence: str):
        self._batch = batch
        self._sequence = sequence

    def lead(self, value: ir.Value) -> int:
        """2 for [B,S,...], 1 for [B*S,...], the rest of known sizes; 0 for anything else."""
        shape = value.shape
        if shape is None or not len(shape):
            return 0
        names = [d.value if isinstance(d, ir.SymbolicDim) else d for d in shape]
        count = 2 if names[:2] == [self._batch, self._sequence] else 1
        if count == 1 and not self._is_flat(shape[0]):
            return 0
        return count if all(isinstance(size, int) for size in names[count:]) else 0

    def _is_flat(self, dim: int | ir.SymbolicDim) -> bool:
        if isinstance(dim, int):
            return False
        found = (
            ir.Shape([dim]).evaluate({self._batch: b, self._sequence: s})[0] for b, s in _SAMPLES
        )
        return list(found) == [b * s for b, s in _SAMPLES]

    def has_tokens(self, value: ir.Value | None) -> bool:
        """Whether a value runs over the sequence; one of unknown shape may."""
        if value is None or value.const_value is not None:
            return False
        if value.shape is None:
            return True
        symbols = (d.free_symbols() for d in value.shape if isinstance(d, ir.SymbolicDim))
        return any(self._sequence in found for found in symbols)

    def entries(self, node: ir.Node, tail: set[ir.Node]) -> list[ir.Value]:
        """Values over the sequence that a node of the tail reads and no other gives."""
        read = (v for v in node.inputs if v is not None and self.has_tokens(v))
        return [value for value in read if value.producer() not in tail]

    def treats_alone(self, node: ir.Node) -> bool:
        """Whether each token's result follows from that token of the inputs alone."""
        over = [v for v in node.inputs if v is not None and self.has_tokens(v)]
        leads = {self.lead(value) for value in (*over, *node.outputs)}
        if node.domain or not over or 0 in leads:
            return False
        op, inputs = node.op_type, list(node.inputs)
        if op == "Reshape":
            return over == inputs[:1] and self._rest(over[0]) == self._rest(node.outputs[0])
        if len(leads) > 1:
            return False
        if op in ELEMENTWISE:
            return len({len(value.shape or ()) for value in (*over, *node.outputs)}) == 1
        if op in _FIRST_ONLY:
            inner = len(over[0].shape or ()) - 1
            turned = node.attributes.get_int("transA", 0)
            return over == inputs[:1] and inner >= leads.pop() and not turned
        return self._works_inside(node, over, leads.pop())

    def _works_inside(self, node: ir.Node, over: list[ir.Value], lead: int) -> bool:
        """Whether a node that works along axes does so behind those of the tokens."""
        rank = len(over[0].shape or ())
        if node.op_type in _FROM_AXIS:
            every = [v for v in node.inputs if v is not None] if node.op_type == "Concat" else over
            default = 0 if node.op_type == "Split" else -1
            axis = node.attributes.get_int("axis", default) % rank
            return axis >= lead and over == every
        if node.op_type.startswith("Reduce"):
            axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if axes is None or not axes.size:
                return False
            return all(int(a) % rank >= lead for a in axes.reshape(-1))
        return False

    def _rest(self, value: ir.Value) -> list[int | ir.SymbolicDim]:
        return list(value.shape or ())[self.lead(value) :]


def keep_last_tokens(model: ir.Model, tail: Tail, *, after: ir.Value) -> None:
    """Cut the values that enter the tail down to the last real token of each row, in place.

    Args:
        model: The graph; it gets the input `new_lengths` [B] int64.
        tail: Its tail.
        after: The input that `new_lengths` comes after.

    Raises:
        PassContractError: What enters the tail is not what entered it when it was found.
    """
    new_lengths = ir.val(NEW_LENGTHS, ir.DataType.INT64, [tail.batch])
    model.graph.inputs.insert(1 + model.graph.inputs.index(after), new_lengths)
    axes, inside = _Axes(tail.batch, tail.sequence), set(tail.nodes)
    if any(v not in tail.entries for node in tail.nodes for v in axes.entries(node, inside)):
        raise PassContractError("what the logits are computed from has changed", where=LOGITS)
    for node in tail.nodes:
        if node.op_type == "Reshape":
            _reshape_any_count(model, node, axes, new_lengths)
    place = Insert(model, tail.nodes[0])
    one, behind = place.ints([1]), place.ints([1, 2])
    last = place.node("Sub", [new_lengths, one], ir.DataType.INT64, new_lengths.shape)
    shape = ir.Shape([tail.batch, 1, 1])
    picked = place.node("Unsqueeze", [last, behind], ir.DataType.INT64, shape)
    outputs = [value for node in tail.nodes for value in node.outputs]
    for value in outputs:
        value.shape = _one_token(value, axes, tail.batch)
    for value in tail.entries:
        _pick(place, value, picked, tail, axes)


def _pick(place: Insert, value: ir.Value, picked: ir.Value, tail: Tail, axes: _Axes) -> None:
    users = [use for use in value.uses() if use.node in tail.nodes]
    one = place.node("GatherND", [value, picked], value.dtype, batch_dims=1)
    one.shape = _one_token(value, axes, tail.batch)
    one.name = f"{value.name}_last"
    for use in users:
        use.node.replace_input_with(use.idx, one)


def _one_token(value: ir.Value, axes: _Axes, batch: str) -> ir.Shape:
    lead, dims = axes.lead(value), list(value.shape or ())
    return ir.Shape([batch, *([1] if lead == 2 else []), *dims[lead:]])


def _reshape_any_count(model: ir.Model, node: ir.Node, axes: _Axes, new_lengths: ir.Value) -> None:
    """Between [B,S,...] and [B*S,...], whatever S is."""
    place, made = Insert(model, node), node.outputs[0]
    lead = axes.lead(made)
    rest = [int(size) for size in list(made.shape or ())[lead:] if isinstance(size, int)]
    target = place.ints([-1, *rest])
    if lead == 2:
        target = place.concat([place.size(new_lengths, 0, 1), target])
    node.attributes.pop("allowzero", None)
    node.replace_input_with(1, target)


def every_token(model: ir.Model) -> ir.Model:
    """A copy of a graph that answers for every token; the graph itself if it does already."""
    lengths = next((v for v in model.graph.inputs if v.name == NEW_LENGTHS), None)
    if lengths is None:
        return model
    whole = model.clone()
    reached: set[ir.Value | None] = set()
    for node in list(whole.graph):
        if node.op_type == "GatherND" and _picks_tokens(node):
            node = _passing_on(whole, node)
            reached.update(node.outputs)
        elif reached.intersection(node.inputs) and node.op_type not in {"Shape", "Size"}:
            reached.update(node.outputs)
    inputs = {str(value.name): value for value in whole.graph.inputs}
    tokens = inputs[DECODER_TOKENS if DECODER_TOKENS in inputs else TOKENS]
    for value in reached:
        if value is not None:
            value.shape = _whole_shape(value, tokens)
    common.RemoveUnusedNodesPass()(whole)
    return whole


def _picks_tokens(node: ir.Node) -> bool:
    index = node.inputs[1]
    return index is not None and any(v.name == NEW_LENGTHS for v in ancestors(index))


def _passing_on(model: ir.Model, pick: ir.Node) -> ir.Node:
    """The pick as an `Identity`, its result under the same name."""
    old, node = pick.outputs[0], ir.node("Identity", [pick.inputs[0]])
    new = node.outputs[0]
    new.type, new.shape, new.name = old.type, old.shape, old.name
    old.name = f"{old.name}_picked"
    model.graph.insert_before(pick, node)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(pick, safe=True)
    return node


def _whole_shape(value: ir.Value, tokens: ir.Value) -> ir.Shape | None:
    """Of an output [B,S,...]; of other values only the rank is claimed."""
    if value.shape is None or tokens.shape is None:
        return None
    if not value.is_graph_output():
        return ir.Shape([None] * len(value.shape))
    return ir.Shape([*tokens.shape, *value.shape[2:]])
