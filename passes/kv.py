"""`kv`: one graph for prefill, chunked prefill, decode, ragged batches and rollback.

1. Every attention must be canonical and causal; each gets past keys and values as inputs and gives
   the updated ones as outputs.
2. The input `cache_lengths` [B] says how many tokens of each row are in the cache before the call.
3. Whatever counts positions from 0 now counts from `cache_lengths`, and masks over positions reach
   over all keys (`optc.rewrite.cache_positions`).
4. The inputs `attention_mask` and `position_ids` go, where they say no more than lengths do
   (`optc.ir.stand_ins`). Others stay if they are [B,S,..], one entry per token.
5. With `logits=last`, what only the logits read is computed for one token of each row
   (`optc.rewrite.last_tokens`); the input `new_lengths` [B] says which.
6. With `dtype=int8`, caches hold integers, whose scales come from calibration data
   (`optc.rewrite.cache_scales`). The pass is measured then, not exact.

The pass is all or nothing: a graph with a cache on some sites only would be wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
from optc.ir.interface import LENGTHS, LOGITS, PADDING, POSITIONS, TOKENS, past_name, present_name
from optc.ir.mixing import mixing_nodes
from optc.ir.recount import TokenAxes
from optc.ir.stand_ins import StandIns, padding_problem
from optc.rewrite.cache_inputs import insert_valid_lengths, past_input
from optc.rewrite.cache_positions import CachePositions
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
        axes, tokens = _token_axes(model), _token_input(model)
        refusals = _input_refusals(model, axes) + _refusals(nodes, axes.sequence)
        tail = find_tail(model, axes.batch, axes.sequence) if self.logits == "last" else None
        if isinstance(tail, str):
            refusals.append(Refusal(LOGITS, tail))
            tail = None
        if refusals:
            return PassResult(refusals=tuple(refusals))
        before = model.clone() if self.dtype == "int8" else model
        stand_ins = _stand_in(model, tokens)
        lengths = ir.val(LENGTHS, ir.DataType.INT64, [axes.batch])
        positions = CachePositions(model, axes, lengths, tokens)
        refusals += positions.prepare(nodes, self.max)
        refusals += _mixing_refusals(model, axes)
        if refusals:
            positions.discard()
            stand_ins.undo()
            return PassResult(refusals=tuple(refusals))
        scales = calibrate(before, ctx) if self.dtype == "int8" else {}
        return self._rewrite(model, nodes, lengths, positions, tail, scales)

    def _rewrite(
        self,
        model: ir.Model,
        nodes: list[ir.Node],
        lengths: ir.Value,
        positions: CachePositions,
        tail: Tail | None,
        scales: Mapping[str, CacheScales],
    ) -> PassResult:
        masks = positions.keep()
        model.graph.inputs.insert(1 + model.graph.inputs.index(_token_input(model)), lengths)
        if tail is not None:
            keep_last_tokens(model, tail, after=lengths)
        valid = insert_valid_lengths(model, _token_input(model), lengths)
        sites = []
        for index, node in enumerate(nodes):
            sites.append(str(node.outputs[0].name))
            self._rewrite_site(model, node, index, valid, masks.get(node), scales.get(sites[-1]))
        self._count_keys(model, positions.keys, valid)
        remove_unused_overloads(model)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        common.ShapeInferencePass()(model)
        note = f"positions follow {LENGTHS} at {positions.places} place(s)"
        details = {"layout": self._layout(), "logits": self.logits, "dtype": self.dtype}
        return PassResult(tuple(sites), notes=(note,), details=details)

    def _count_keys(self, model: ir.Model, keys: ir.Value, valid: ir.Value) -> None:
        """What is counted as keys after the call: as many as `present` has."""
        past = next(v for v in model.graph.inputs if v.name == past_name(0, "key"))
        made = ir.node("Shape", [past], {"start": 2, "end": 3})
        nodes = [made]
        if self._layout() == "concat":
            most = ir.node("ReduceMax", [valid], {"keepdims": 1})
            made = ir.node("Max", [made.outputs[0], most.outputs[0]])
            nodes += [most, made]
        model.graph.insert_before(model.graph[0], nodes)
        ir.convenience.replace_all_uses_with(keys, made.outputs[0])

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
        mask: ir.Value | None,
        scales: CacheScales | None,
    ) -> None:
        named = dict(zip(INPUTS, node.inputs, strict=False)) | {"mask": mask}
        inputs = {key: value for key, value in named.items() if value is not None}
        tokens = self.max if self._layout() == "static" else "past_sequence"
        batch = _token_axes(model).batch
        for part in ("key", "value"):
            inputs[f"past_{part}"] = past_input(
                model, past_name(index, part), inputs[part], batch, tokens
            )
        inputs["lengths"] = valid
        if scales is not None:
            inputs |= add_scales(model, index, scales)
            inputs["past_key"].dtype = inputs["past_value"].dtype = ir.DataType.INT8
        spec = dataclasses.replace(
            read_spec(node), cache=self._layout(), lengths=True, int8=scales is not None
        )
        spec = spec if mask is not None else dataclasses.replace(spec, mask="")
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
    tokens = next((v for v in inputs if v.name == TOKENS), None)
    if tokens is None:
        names = ", ".join(str(v.name) for v in inputs)
        problem = f"the graph has no input named '{TOKENS}' (it has {names})"
        raise UnsupportedError(problem, where="pass 'kv'")
    return tokens


def _token_axes(model: ir.Model) -> TokenAxes:
    shape = _token_input(model).shape
    names = _names(shape)
    if len(names) != 2 or names[0] is None or names[1] is None or names[0] == names[1]:
        raise UnsupportedError(
            f"'{TOKENS}' has shape {shape}, not [batch, sequence] with both dynamic",
            where="pass 'kv'",
            remedy="export with dynamic batch and sequence",
        )
    return TokenAxes(names[0], names[1])


def _names(shape: ir.Shape | None) -> list[str | None]:
    return [d.value if isinstance(d, ir.SymbolicDim) else None for d in shape or ()]


def _others(model: ir.Model) -> list[ir.Value]:
    inputs = [v for v in model.graph.inputs if v.const_value is None]
    return [v for v in inputs if v.name != TOKENS]


def _input_refusals(model: ir.Model, axes: TokenAxes) -> list[Refusal]:
    """Inputs besides the tokens: derived ones, and those with one entry per token."""
    found = []
    for value in _others(model):
        reason = ""
        if _names(value.shape)[:2] != [axes.batch, axes.sequence]:
            reason = f"the input is {value.shape}, not one entry per token of '{TOKENS}'"
        elif value.name == PADDING:
            reason = padding_problem(model, value, axes)
        if reason:
            found.append(Refusal(str(value.name), reason))
    return found


def _stand_in(model: ir.Model, tokens: ir.Value) -> StandIns:
    stand_ins = StandIns(model, tokens)
    for value in _others(model):
        if value.name == PADDING:
            stand_ins.ones(value)
        elif value.name == POSITIONS:
            stand_ins.positions(value)
    return stand_ins


def _mixing_refusals(model: ir.Model, axes: TokenAxes) -> list[Refusal]:
    reason = "this {} combines tokens, which a cache hides"
    return [
        Refusal(str(node.outputs[0].name), reason.format(node.op_type))
        for node in mixing_nodes(model, axes.sequence)
    ]


def _refusals(nodes: list[ir.Node], sequence: str) -> list[Refusal]:
    found = []
    for node in nodes:
        spec, key = read_spec(node), node.inputs[1]
        shape = key.shape if key is not None else None
        reason = ""
        if not spec.causal:
            reason = "the attention is not causal, so it cannot be computed token by token"
        elif shape is None or not all(isinstance(shape[i], int) for i in (1, 3)):
            reason = "the number and size of its key heads are not known"
        elif not isinstance(shape[2], ir.SymbolicDim) or shape[2].value != sequence:
            reason = f"its keys do not come from '{TOKENS}'"
        if reason:
            found.append(Refusal(str(node.outputs[0].name), reason))
    return found
