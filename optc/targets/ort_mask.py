"""Let an engine with the cache interface be fed as Hugging Face's runtimes feed theirs.

optc's graphs take `cache_lengths`, and rows that are padded on the right. optimum and
onnxruntime-genai give an `attention_mask` [B,T] instead: a column for every token of the cache and
of this call, 1 where there is a token and 0 where there is padding. Small nodes in front of the
graph translate:

1. The last S columns are about the tokens of this call, the others about the cache. A row has as
   many tokens in the cache as it has ones there: the cache holds no padding.
2. Padding may stand anywhere. Each row's tokens are brought to its front, in their order. The
   logits go back to where their tokens came from; padding gets those of the token in front of it,
   so that the last column is always about the row's last token. An engine that answers for the
   last token only (`new_lengths`) is told how many there are, and its logits stay as they are.
3. Positions follow: a token's position is the number of ones in front of it. Where `position_ids`
   are taken, they must say the same.

What cannot be right stops the run: an index goes out of bounds in a node whose name is the reason.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from optc.ir.insert import Insert
from optc.ir.interface import LENGTHS, LOGITS, NEW_LENGTHS, TOKENS, past_name

__all__ = ["MASK", "POSITIONS", "take_mask"]

MASK = "attention_mask"
POSITIONS = "position_ids"
_INT64 = ir.DataType.INT64


def take_mask(model: ir.Model, *, any_padding: bool, positions: bool, shared: bool) -> None:
    """Replace the input `cache_lengths` by `attention_mask`, in place.

    Args:
        model: An engine with the cache interface; see `optc.ir.interface`.
        any_padding: Whether rows may have padding in front of tokens. Where they never have, the
            logits need not be copied, and a row that has stops the run.
        positions: Whether there is an input `position_ids` too.
        shared: Whether the cache that comes in may have room for later tokens, in one buffer with
            the cache that goes out.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    ours = [inputs[name] for name in (TOKENS, LENGTHS, NEW_LENGTHS) if name in inputs]
    uses = {value: list(value.uses()) for value in ours}
    adapter = _Adapter(model, inputs[TOKENS], inputs[past_name(0, "key")])
    adapter.check_columns(shared=shared)
    if positions:
        adapter.check_positions()
    if not any_padding:
        adapter.check_no_padding_in_front()
    replacements = {LENGTHS: adapter.cache_lengths()}
    if NEW_LENGTHS in inputs:
        replacements[NEW_LENGTHS] = adapter.new_lengths()
    if any_padding:
        replacements[TOKENS] = adapter.tokens_in_front()
    for value in ours:
        for node, index in uses[value] if value.name in replacements else ():
            node.replace_input_with(index, replacements[str(value.name)])
    if any_padding and NEW_LENGTHS not in inputs:
        adapter.put_logits_back()
    _replace_inputs(model.graph, ours[1:], adapter.inputs)


def _replace_inputs(graph: ir.Graph, old: Iterable[ir.Value], new: list[ir.Value]) -> None:
    """New inputs stand behind the tokens, the old ones are gone."""
    for value in old:
        graph.inputs.remove(value)
    at = next(i for i, value in enumerate(graph.inputs) if value.name == TOKENS)
    graph.inputs[at + 1 : at + 1] = new


class _Adapter:
    """Writes the nodes in front of a graph: B rows, S tokens of this call, T columns of the mask.

    Args:
        model: The model.
        tokens: `input_ids` [B,S] int64.
        past: The first cache input [B,H,P,D].
    """

    def __init__(self, model: ir.Model, tokens: ir.Value, past: ir.Value):
        self._graph = model.graph
        self._add = Insert(model, model.graph[0])
        self._tokens, self._past = tokens, past
        batch = tokens.shape[0] if tokens.shape is not None else None
        mask = _input(MASK, ir.Shape([batch, "total_sequence"]))
        self.inputs = [mask]
        self._refusals: list[ir.Value] = []
        self._zero, self._one = self._add.ints([0]), self._add.ints([1])

        flags = self._add.node("Cast", [mask], ir.DataType.BOOL, to=ir.DataType.BOOL)
        ones = self._node("Cast", [flags], to=_INT64)
        self._count = self._add.size(tokens, 1, 2)
        width = self._add.size(ones, 1, 2)
        self._before = self._node("Sub", [width, self._count])
        cached = self._node("Slice", [ones, self._zero, self._before, self._one])
        self._new = self._node("Slice", [ones, self._before, width, self._one])
        self._cached = self._node("ReduceSum", [cached, self._one], keepdims=0)

    def check_columns(self, *, shared: bool) -> None:
        """A row has at most as many tokens as the cache; the cache, if not shared, its columns."""
        held = self._add.size(self._past, 2, 3)
        most = self._node("ReduceMax", [self._cached], keepdims=1)
        columns = self._zero if shared else held
        self._refuse_less(self._before, columns, "attention_mask misses cached tokens")
        self._refuse_less(held, most, "attention_mask has more tokens than the cache")

    def check_positions(self) -> None:
        """A token's position is the number of ones in front of it."""
        given = _input(POSITIONS, self._tokens.shape)
        self.inputs.append(given)
        start = self._node("Unsqueeze", [self._cached, self._one])
        expected = self._node("Add", [start, self._ones_before(exclusive=1)])
        off = self._node("Mul", [self._node("Sub", [given, expected]), self._new])
        worst = self._node("ReduceMax", [self._node("Abs", [off])], keepdims=0)
        reason = "position_ids do not count the ones of attention_mask"
        self._refuse_less(self._zero, worst, reason)

    def check_no_padding_in_front(self) -> None:
        """The new tokens of a row are in front of its padding."""
        padding = self._node("Sub", [self._one, self._new])
        before = self._node("CumSum", [padding, self._one], exclusive=1)
        worst = self._node("ReduceMax", [self._node("Mul", [before, self._new])], keepdims=0)
        self._refuse_less(self._zero, worst, "attention_mask has padding in front of tokens")

    def cache_lengths(self) -> ir.Value:
        """Tokens of each row in the cache [B]; the checks are added, so that nothing drops them."""
        found = self._cached
        for zero in self._refusals:
            found = self._node("Add", [found, zero])
        return found

    def new_lengths(self) -> ir.Value:
        """Tokens of each row in this call [B]; 1 where there is nothing but padding."""
        count = self._node("ReduceSum", [self._new, self._one], keepdims=0)
        return self._node("Max", [count, self._one])

    def tokens_in_front(self) -> ir.Value:
        """`input_ids` [B,S] with each row's tokens in front of its padding."""
        # TopK keeps the order of equal values, as its specification says.
        node = ir.node("TopK", [self._new, self._count], {"axis": 1}, num_outputs=2)
        self._graph.insert_before(self._add.before, node)
        return self._node("GatherElements", [self._tokens, node.outputs[1]], axis=1)

    def put_logits_back(self) -> None:
        """Each column of `logits` [B,S,V] is about its token, or the last one in front of it."""
        at = next(i for i, value in enumerate(self._graph.outputs) if value.name == LOGITS)
        logits = self._graph.outputs[at]
        rank = self._node("Sub", [self._ones_before(exclusive=0), self._one])
        place = self._node("Max", [rank, self._zero])
        index = self._node("Unsqueeze", [place, self._add.ints([2])])
        node = ir.node("GatherND", [logits, index], {"batch_dims": 1})
        back = node.outputs[0]
        back.type, back.shape = logits.type, logits.shape
        logits.name, back.name = f"{LOGITS}_in_front", LOGITS
        self._graph.append(node)
        self._graph.outputs[at] = back

    def _ones_before(self, *, exclusive: int) -> ir.Value:
        """Tokens of this call in front of each column [B,S]; without `exclusive`, up to it."""
        return self._node("CumSum", [self._new, self._one], exclusive=exclusive)

    def _refuse_less(self, left: ir.Value, right: ir.Value, reason: str) -> None:
        """Stop the run where left < right, [1] int64 both."""
        holds = self._add.node("Less", [left, right], ir.DataType.BOOL)
        index = self._node("Cast", [holds], to=_INT64)
        node = ir.node("Gather", [self._zero, index], name=reason)
        node.outputs[0].dtype = _INT64
        self._graph.insert_before(self._add.before, node)
        self._refusals.append(node.outputs[0])

    def _node(self, op: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        return self._add.node(op, inputs, _INT64, None, **attributes)


def _input(name: str, shape: ir.Shape | None) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(_INT64), shape=shape)
