"""`kv`: one graph for prefill, chunked prefill, decode, ragged batches and rollback.

1. Every attention must be canonical and causal; each gets past keys and values as inputs and gives
   the updated ones as outputs.
2. The input `cache_lengths` [B] says how many tokens of each row are in the cache before the call.
3. Whatever counts positions from 0 now counts from `cache_lengths` (`optc.ir.positions`).
4. Keys and values that come from an encoder are kept as they are, and the encoder is run only where
   that cache is empty (`optc.rewrite.encode_once`).

The pass is all or nothing: a graph with a cache on some sites only would be wrong.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.base import Pass, PassResult, Refusal, option
from optc.core.context import Context
from optc.core.errors import PassContractError, UnsupportedError, UsageError
from optc.ir.flash_attention import (
    INPUTS,
    add_flash_attention,
    flash_attention_nodes,
    read_spec,
    remove_unused_overloads,
)
from optc.ir.interface import LENGTHS, LOGITS, past_name, present_name
from optc.ir.mixing import mixing_nodes
from optc.ir.positions import (
    PositionSource,
    find_position_source,
    forget_shapes_after,
    position_uses,
)
from optc.ir.probe import ancestors
from optc.rewrite.cross_attention import cross_refusals, keep_encoded
from optc.rewrite.decoder import Decoder, heads_and_size, past_input, read_decoder

__all__ = ["KV"]


@dataclasses.dataclass(frozen=True)
class KV(Pass):
    """Add a key/value cache to a decoder, or encoder-decoder, that was exported without one."""

    name: ClassVar[str] = "kv"
    after: ClassVar[tuple[str, ...]] = ("prune", "flash")

    layout: str = option(
        "auto",
        "'concat' grows, 'static' writes into buffers of `max` tokens; auto: static if max is set",
        choices=("auto", "concat", "static"),
    )
    max: int | None = option(None, "tokens that a static cache holds", minimum=1)

    def __post_init__(self) -> None:
        """See that the options fit together."""
        if self.layout == "static" and self.max is None:
            raise UsageError("a static cache needs a size", where="kv:layout", remedy="add max=N")
        if self.layout == "concat" and self.max is not None:
            raise UsageError("a growing cache has no size", where="kv:max", remedy="drop max")

    def requires(self, model: ir.Model, ctx: Context) -> None:
        """The graph is a decoder over `input_ids` whose attention is canonical."""
        if not any(True for _ in flash_attention_nodes(model)):
            raise UnsupportedError(
                "the graph has no canonical attention",
                where="pass 'kv'",
                remedy="run 'flash' too: --passes flash,kv",
            )
        read_decoder(model)
        if LOGITS not in {v.name for v in model.graph.outputs}:
            names = ", ".join(str(v.name) for v in model.graph.outputs)
            problem = f"the graph has no output named '{LOGITS}' (it has {names})"
            remedy = f"export with output_names=['{LOGITS}']"
            raise UnsupportedError(problem, where="pass 'kv'", remedy=remedy)

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Give every site a cache, or none."""
        if any(value.name == LENGTHS for value in model.graph.inputs):
            return PassResult(notes=("the graph has a cache already",))
        common.TopologicalSortPass()(model)
        decoder = read_decoder(model)
        nodes = [*decoder.own, *decoder.cross]
        if not all(ctx.wants(str(node.outputs[0].name)) for node in nodes):
            return PassResult(notes=("a cache on some sites only would be wrong",))
        refusals = _refusals(model, decoder)
        sources, problems = _position_sources(model, decoder.batch, decoder.sequence)
        refusals += [Refusal("positions", problem) for problem in problems]
        refusals += [
            Refusal(
                str(n.outputs[0].name), f"this {n.op_type} combines tokens, which a cache hides"
            )
            for n in mixing_nodes(model, decoder.sequence)
        ]
        if refusals:
            return PassResult(refusals=tuple(refusals))
        return self._rewrite(model, decoder, sources)

    def _rewrite(
        self, model: ir.Model, decoder: Decoder, sources: list[PositionSource]
    ) -> PassResult:
        lengths = ir.val(LENGTHS, ir.DataType.INT64, [decoder.batch])
        model.graph.inputs.append(lengths)
        valid = _insert_lengths(model, decoder.tokens, lengths)
        for source in sources:
            forget_shapes_after(model, source.value)
            _insert_positions(model, lengths, source)
        sites = tuple(str(node.outputs[0].name) for node in (*decoder.own, *decoder.cross))
        prefix = "decoder." if decoder.cross else ""
        for index, node in enumerate(decoder.own):
            self._rewrite_site(model, decoder.batch, node, index, prefix, valid)
        if decoder.cross:
            keep_encoded(model, decoder)
        remove_unused_overloads(model)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        common.ShapeInferencePass()(model)
        notes = [f"positions follow {LENGTHS} at {len(sources)} place(s)"]
        if decoder.cross:
            notes.append(f"the encoder is run once, for {len(decoder.cross)} sites")
        return PassResult(sites, notes=tuple(notes), details={"layout": self._layout()})

    def _layout(self) -> str:
        if self.layout != "auto":
            return self.layout
        return "static" if self.max is not None else "concat"

    def _rewrite_site(
        self,
        model: ir.Model,
        batch: str,
        node: ir.Node,
        index: int,
        prefix: str,
        valid: ir.Value,
    ) -> None:
        named = dict(zip(INPUTS, node.inputs, strict=False))
        inputs = {key: value for key, value in named.items() if value is not None}
        tokens = self.max if self._layout() == "static" else "past_sequence"
        for part in ("key", "value"):
            name = past_name(index, f"{prefix}{part}")
            inputs[f"past_{part}"] = past_input(model, name, inputs[part], batch, tokens)
        inputs["lengths"] = valid
        spec = dataclasses.replace(read_spec(node), cache=self._layout(), lengths=True)
        old = node.outputs[0]
        cached = add_flash_attention(model, spec, inputs, name=str(old.name))
        cached.outputs[0].shape, cached.outputs[0].type = old.shape, old.type
        model.graph.insert_before(node, cached)
        ir.convenience.replace_all_uses_with(old, cached.outputs[0], replace_graph_outputs=True)
        old.name = f"{old.name}_uncached"
        model.graph.remove(node, safe=True)
        for output, part in zip(cached.outputs[1:], ("key", "value"), strict=True):
            output.name = present_name(index, f"{prefix}{part}")
            model.graph.outputs.append(output)

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        """All attention among the tokens has a cache, or none has."""
        cached = [bool(read_spec(node).cache) for node in read_decoder(model).own]
        if any(cached) and not all(cached):
            raise PassContractError("only some sites have a cache", where=self.name)


def _refusals(model: ir.Model, decoder: Decoder) -> list[Refusal]:
    found = []
    for node in decoder.own:
        spec, key = read_spec(node), node.inputs[1]
        shape = key.shape if key is not None else None
        reason = ""
        if not spec.causal:
            reason = "the attention is not causal, so it cannot be computed token by token"
        elif spec.mask:
            reason = "it has a mask that is not only causal"
        elif key is None or shape is None or heads_and_size(key) is None:
            reason = "the number and size of its key heads are not known"
        elif not isinstance(shape[2], ir.SymbolicDim) or shape[2].value != decoder.sequence:
            reason = f"its keys do not come from '{decoder.tokens.name}'"
        if reason:
            found.append(Refusal(str(node.outputs[0].name), reason))
    return found + cross_refusals(model, decoder)


def _position_sources(
    model: ir.Model, batch: str, sequence: str
) -> tuple[list[PositionSource], list[str]]:
    """Where positions come from, and what stands in the way."""
    sources: dict[PositionSource, None] = {}
    problems: list[str] = []
    for use in position_uses(model, batch, sequence):
        found = use if isinstance(use, str) else find_position_source(model, use, batch, sequence)
        if isinstance(found, str):
            problems.append(found)
        elif found is not None:
            sources.setdefault(found)
    values = {source.value for source in sources}
    for value in values:
        if others := (ancestors(value) & values) - {value}:
            names = ", ".join(str(v.name) for v in others)
            problems.append(f"positions come from both '{value.name}' and {names} before it")
    return list(sources), problems


def _insert_lengths(model: ir.Model, tokens: ir.Value, lengths: ir.Value) -> ir.Value:
    """`cache_lengths + S`: valid keys per row, new ones included."""
    count = ir.node("Shape", [tokens], {"start": 1, "end": 2})
    total = ir.node("Add", [lengths, count.outputs[0]])
    model.graph.insert_before(model.graph[0], [count, total])
    valid = total.outputs[0]
    valid.name, valid.dtype, valid.shape = "valid_lengths", ir.DataType.INT64, lengths.shape
    return valid


def _insert_positions(model: ir.Model, lengths: ir.Value, source: PositionSource) -> None:
    """Every use of the source [1|B,..,S,..] gets it plus `cache_lengths[b]` instead."""
    value = source.value
    at, uses = value.producer(), list(value.uses())
    assert at is not None
    axes = ir.node("Constant", [], {"value_ints": list(range(1, source.rank))})
    offsets = ir.node("Unsqueeze", [lengths, axes.outputs[0]])
    whole = ir.node("Cast", [offsets.outputs[0]], {"to": value.dtype or ir.DataType.INT64})
    total = ir.node("Add", [whole.outputs[0], value])
    model.graph.insert_after(at, [axes, offsets, whole, total])
    for use in uses:
        use.node.replace_input_with(use.idx, total.outputs[0])
