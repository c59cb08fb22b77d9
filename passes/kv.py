"""`kv`: one graph for prefill, chunked prefill, decode, ragged batches and rollback.

1. Every attention must be canonical and causal; each gets past keys and values as inputs and gives
   the updated ones as outputs.
2. The input `cache_lengths` [B] says how many tokens of each row are in the cache before the call.
3. Whatever counts positions from 0 now counts from `cache_lengths` (`optc.ir.positions`).
4. With `logits=last`, what only the logits read is computed for one token of each row
   (`optc.rewrite.last_tokens`); the input `new_lengths` [B] says which.
5. With `dtype=int8`, caches hold integers, whose scales come from calibration data
   (`optc.rewrite.cache_scales`). The pass is measured then, not exact.

The pass is all or nothing: a graph with a cache on some sites only would be wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.base import Pass, PassResult, Promise, Refusal, option
from optc.core.context import Context
from optc.core.errors import PassContractError, UnsupportedError, UsageError
from optc.ir.flash_attention import (
    INPUTS,
    add_flash_attention,
    flash_attention_nodes,
    read_spec,
    remove_unused_overloads,
)
from optc.ir.interface import LENGTHS, LOGITS, TOKENS, past_name, present_name
from optc.ir.mixing import mixing_nodes
from optc.ir.positions import (
    PositionSource,
    find_position_source,
    forget_shapes_after,
    position_uses,
)
from optc.ir.probe import ancestors
from optc.rewrite.cache_scales import CacheScales, add_scales, calibrate
from optc.rewrite.last_tokens import Tail, find_tail, keep_last_tokens

__all__ = ["KV"]


@dataclasses.dataclass(frozen=True)
class KV(Pass):
    """Add a key/value cache to a decoder that was exported without one."""

    name: ClassVar[str] = "kv"
    after: ClassVar[tuple[str, ...]] = ("prune", "flash")

    layout: str = option(
        "auto",
        "'concat' grows, 'static' writes into buffers of `max` tokens; auto: static if max is set",
        choices=("auto", "concat", "static"),
    )
    max: int | None = option(None, "tokens that a static cache holds", minimum=1)
    logits: str = option(
        "all",
        "'last': those of each row's last real token only, which the input new_lengths names",
        choices=("all", "last"),
    )
    dtype: str = option(
        "float",
        "'int8': caches hold integers, a quarter of the memory; measured, needs calibration data",
        choices=("float", "int8"),
    )

    def __post_init__(self) -> None:
        """See that the options fit together."""
        if self.layout == "static" and self.max is None:
            raise UsageError("a static cache needs a size", where="kv:layout", remedy="add max=N")
        if self.layout == "concat" and self.max is not None:
            raise UsageError("a growing cache has no size", where="kv:max", remedy="drop max")

    @property
    def promised(self) -> str:
        """Exact, as long as the cache keeps the numbers it is given."""
        return Promise.MEASURED if self.dtype == "int8" else self.promise

    def requires(self, model: ir.Model, ctx: Context) -> None:
        """The graph is a decoder over `input_ids` whose attention is canonical."""
        if not any(True for _ in flash_attention_nodes(model)):
            raise UnsupportedError(
                "the graph has no canonical attention",
                where="pass 'kv'",
                remedy="run 'flash' too: --passes flash,kv",
            )
        _token_input(model)
        if LOGITS not in {v.name for v in model.graph.outputs}:
            names = ", ".join(str(v.name) for v in model.graph.outputs)
            problem = f"the graph has no output named '{LOGITS}' (it has {names})"
            remedy = f"export with output_names=['{LOGITS}']"
            raise UnsupportedError(problem, where="pass 'kv'", remedy=remedy)

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Give every site a cache, or none."""
        nodes = list(flash_attention_nodes(model))
        if all(read_spec(node).cache for node in nodes):
            return PassResult(notes=("the graph has a cache already",))
        if not all(ctx.wants(str(node.outputs[0].name)) for node in nodes):
            return PassResult(notes=("a cache on some sites only would be wrong",))
        batch, sequence = _token_symbols(model)
        refusals = _refusals(nodes, sequence)
        sources, problems = _position_sources(model, batch, sequence)
        refusals += [Refusal("positions", problem) for problem in problems]
        refusals += [
            Refusal(
                str(n.outputs[0].name), f"this {n.op_type} combines tokens, which a cache hides"
            )
            for n in mixing_nodes(model, sequence)
        ]
        tail = find_tail(model, batch, sequence) if self.logits == "last" else None
        if isinstance(tail, str):
            refusals.append(Refusal(LOGITS, tail))
            tail = None
        if refusals:
            return PassResult(refusals=tuple(refusals))
        scales = calibrate(model, nodes, ctx) if self.dtype == "int8" else [None] * len(nodes)
        return self._rewrite(model, nodes, sources, tail, scales)

    def _rewrite(
        self,
        model: ir.Model,
        nodes: list[ir.Node],
        sources: list[PositionSource],
        tail: Tail | None,
        scales: Sequence[CacheScales | None],
    ) -> PassResult:
        lengths = ir.val(LENGTHS, ir.DataType.INT64, [_token_symbols(model)[0]])
        model.graph.inputs.append(lengths)
        if tail is not None:
            keep_last_tokens(model, tail)
        valid = _insert_lengths(model, lengths)
        for source in sources:
            forget_shapes_after(model, source.value)
            _insert_positions(model, lengths, source)
        sites = []
        for index, (node, steps) in enumerate(zip(nodes, scales, strict=True)):
            sites.append(str(node.outputs[0].name))
            self._rewrite_site(model, node, index, valid, steps)
        remove_unused_overloads(model)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        common.ShapeInferencePass()(model)
        note = f"positions follow {LENGTHS} at {len(sources)} place(s)"
        details = {"layout": self._layout(), "logits": self.logits, "dtype": self.dtype}
        return PassResult(tuple(sites), notes=(note,), details=details)

    def _layout(self) -> str:
        if self.layout != "auto":
            return self.layout
        return "static" if self.max is not None else "concat"

    def _rewrite_site(
        self,
        model: ir.Model,
        node: ir.Node,
        index: int,
        valid: ir.Value,
        scales: CacheScales | None,
    ) -> None:
        given = zip(INPUTS, node.inputs, strict=False)
        inputs = {key: value for key, value in given if value is not None}
        tokens = self.max if self._layout() == "static" else "past_sequence"
        batch = _token_symbols(model)[0]
        for part in ("key", "value"):
            inputs[f"past_{part}"] = _past(
                model, past_name(index, part), inputs[part], batch, tokens
            )
        inputs["lengths"] = valid
        if scales is not None:
            inputs |= add_scales(model, index, scales)
            inputs["past_key"].dtype = inputs["past_value"].dtype = ir.DataType.INT8
        spec = dataclasses.replace(
            read_spec(node), cache=self._layout(), lengths=True, int8=scales is not None
        )
        old = node.outputs[0]
        cached = add_flash_attention(model, spec, inputs, name=str(old.name))
        cached.outputs[0].shape, cached.outputs[0].type = old.shape, old.type
        model.graph.insert_before(node, cached)
        ir.convenience.replace_all_uses_with(old, cached.outputs[0], replace_graph_outputs=True)
        old.name = f"{old.name}_uncached"
        model.graph.remove(node, safe=True)
        for output, part in zip(cached.outputs[1:], ("key", "value"), strict=True):
            output.name = present_name(index, part)
            model.graph.outputs.append(output)

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        """Every canonical attention has a cache, or none has."""
        cached = [bool(read_spec(node).cache) for node in flash_attention_nodes(model)]
        if any(cached) and not all(cached):
            raise PassContractError("only some sites have a cache", where=self.name)


def _token_input(model: ir.Model) -> ir.Value:
    inputs = [v for v in model.graph.inputs if v.const_value is None]
    others = [str(v.name) for v in inputs if v.name != TOKENS]
    tokens = next((v for v in inputs if v.name == TOKENS), None)
    if tokens is None:
        names = ", ".join(str(v.name) for v in inputs)
        problem = f"the graph has no input named '{TOKENS}' (it has {names})"
        raise UnsupportedError(problem, where="pass 'kv'")
    if others and LENGTHS not in others:
        raise UnsupportedError(
            f"inputs besides '{TOKENS}' are not understood yet: {', '.join(others)}",
            where="pass 'kv'",
            remedy="export without them",
        )
    return tokens


def _token_symbols(model: ir.Model) -> tuple[str, str]:
    shape = _token_input(model).shape
    names = [d.value if isinstance(d, ir.SymbolicDim) else None for d in shape or ()]
    if len(names) != 2 or names[0] is None or names[1] is None or names[0] == names[1]:
        raise UnsupportedError(
            f"'{TOKENS}' has shape {shape}, not [batch, sequence] with both dynamic",
            where="pass 'kv'",
            remedy="export with dynamic batch and sequence",
        )
    return names[0], names[1]


def _refusals(nodes: list[ir.Node], sequence: str) -> list[Refusal]:
    found = []
    for node in nodes:
        spec, key = read_spec(node), node.inputs[1]
        shape = key.shape if key is not None else None
        reason = ""
        if not spec.causal:
            reason = "the attention is not causal, so it cannot be computed token by token"
        elif spec.mask:
            reason = "it has a mask that is not only causal"
        elif shape is None or not all(isinstance(shape[i], int) for i in (1, 3)):
            reason = "the number and size of its key heads are not known"
        elif not isinstance(shape[2], ir.SymbolicDim) or shape[2].value != sequence:
            reason = f"its keys do not come from '{TOKENS}'"
        if reason:
            found.append(Refusal(str(node.outputs[0].name), reason))
    return found


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


def _past(
    model: ir.Model, name: str, new: ir.Value, batch: str, tokens: int | str | None
) -> ir.Value:
    """The input [B,H,tokens,D] that holds what `new` [B,H,S,D] is appended to."""
    dims = list(new.shape or ())  # rank 4 with whole heads and size: see _refusals
    shape = ir.Shape([batch, dims[1], tokens, dims[3]])
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(new.dtype or ir.DataType.FLOAT))
    model.graph.inputs.append(value)
    return value


def _insert_lengths(model: ir.Model, lengths: ir.Value) -> ir.Value:
    """`cache_lengths + S`: valid keys per row, new ones included."""
    count = ir.node("Shape", [_token_input(model)], {"start": 1, "end": 2})
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
