"""`kv`: one graph for prefill, chunked prefill, decode, ragged batches and rollback.

1. Every attention must be canonical and causal; each gets past keys and values as inputs and gives
   the updated ones as outputs.
2. The input `cache_lengths` [B] says how many tokens of each row are in the cache before the call.
3. Whatever counts positions from 0 now counts from `cache_lengths`, and masks over positions reach
   over all keys (`optc.rewrite.cache_positions`).
4. Keys and values that come from an encoder are kept as they are, and the encoder is run only where
   that cache is empty (`optc.rewrite.encode_once`).
5. The inputs `attention_mask` and `position_ids` go, where they say no more than lengths do
   (`optc.ir.stand_ins`). Others stay if they are [B,S,..], one entry per token.
6. With `logits=last`, what only the logits read is computed for one token of each row
   (`optc.rewrite.last_tokens`); the input `new_lengths` [B] says which.
7. With `dtype=int8`, caches hold integers, whose scales come from calibration data
   (`optc.rewrite.cache_scales`). The pass is measured then, not exact.

The pass is all or nothing: a graph with a cache on some sites only would be wrong.
"""

from __future__ import annotations

import contextlib
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
from optc.ir.interface import LENGTHS, LOGITS, PADDING, POSITIONS, past_name, present_name
from optc.ir.padding_ids import PaddingIds
from optc.ir.stand_ins import StandIns
from optc.rewrite.cache_inputs import insert_valid_lengths, past_input
from optc.rewrite.cache_positions import CachePositions
from optc.rewrite.cache_refusals import input_refusals, mixing_refusals, own_refusals, role
from optc.rewrite.cache_scales import CacheScales, add_scales, calibrate
from optc.rewrite.cross_attention import cross_refusals, keep_encoded
from optc.rewrite.decoder import Decoder, read_decoder
from optc.rewrite.last_tokens import Tail, find_again, find_tail, keep_last_tokens

__all__ = ["KV"]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is found out before anything is rewritten: see the numbers above."""

    lengths: ir.Value
    positions: CachePositions
    tail: Tail | None
    scales: Mapping[str, CacheScales]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class KV(Pass):
    """Add a key/value cache to a decoder, or encoder-decoder, that was exported without one."""

    name: ClassVar[str] = "kv"
    after: ClassVar[tuple[str, ...]] = ("prune", "flash")
    needs: ClassVar[tuple[str, ...]] = ("flash",)

    layout: str = option(
        "auto",
        "'concat' grows, 'static' writes into buffers of `max` tokens; auto: static if max is set",
        choices=("auto", "concat", "static"),
    )
    max: int | None = option(None, "tokens that a static cache holds", minimum=1, shared=True)
    logits: str = option(
        "all",
        "'last': those of each row's last real token only, which the input new_lengths names",
        choices=("all", "last"),
        shared=True,
    )
    dtype: str = option(
        "float",
        "'int8': caches hold integers, a quarter of the memory; measured, needs calibration data",
        choices=("float", "int8"),
        shared=True,
    )

    def __post_init__(self) -> None:
        """See that the options fit together."""
        if self.layout == "static" and self.max is None:
            raise UsageError("a static cache needs a size", where="kv:layout", remedy="add max=N")
        if self.layout == "concat" and self.max is not None:
            raise UsageError("a growing cache has no size", where="kv:max", remedy="drop max")
        if self.max is not None and self.max >= 1 << 31:
            problem = "runtimes count tokens in 31 bits"
            raise UsageError(problem, where="kv:max", remedy=f"the largest is {(1 << 31) - 1}")

    @property
    def promised(self) -> str:
        """Exact, as long as the cache keeps the numbers it is given."""
        return Promise.MEASURED if self.dtype == "int8" else self.promise

    def requires(self, model: ir.Model, ctx: Context) -> None:
        """The graph is a decoder over token ids whose attention is canonical."""
        if not any(True for _ in flash_attention_nodes(model)):
            raise UnsupportedError(
                "the graph has no canonical attention",
                where="pass 'kv'",
                remedy="run 'flash' too: --passes flash,kv",
            )
        outputs = [str(value.name) for value in model.graph.outputs]
        causal = any(read_spec(node).causal for node in flash_attention_nodes(model))
        if LOGITS not in outputs and not causal:
            problem = "the graph is an encoder: no attention is causal, so it generates nothing"
            raise UnsupportedError(problem, where="pass 'kv'", remedy="leave 'kv' out")
        read_decoder(model)
        if LOGITS not in outputs:
            problem = f"the graph has no output named '{LOGITS}' (it has {', '.join(outputs)})"
            remedy = f"export with output_names=['{LOGITS}']"
            raise UnsupportedError(problem, where="pass 'kv'", remedy=remedy)

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Give every site a cache, or none."""
        if any(value.name == LENGTHS for value in model.graph.inputs):
            return PassResult(notes=("the graph has a cache already",))
        common.TopologicalSortPass()(model)
        decoder = read_decoder(model)
        if not all(ctx.wants(site) for site in _sites(decoder)):
            return PassResult(notes=("a cache on some sites only would be wrong",))
        with contextlib.ExitStack() as undo:
            plan = self._plan(model, decoder, ctx, undo)
            if not isinstance(plan, _Plan):
                return PassResult(refusals=tuple(plan))
            undo.pop_all()
        return self._rewrite(model, decoder, plan)

    def _plan(
        self, model: ir.Model, decoder: Decoder, ctx: Context, undo: contextlib.ExitStack
    ) -> _Plan | list[Refusal]:
        """Find out what is to be done, or what stands in the way.

        Args:
            model: Changed on trial.
            decoder: What was read of it.
            ctx: Calibration data.
            undo: Learns how to take back each change.
        """
        axes, stand_ins = decoder.axes, StandIns(model, decoder.tokens)
        undo.callback(stand_ins.undo)
        refusals = input_refusals(model, decoder, stand_ins) + own_refusals(decoder)
        refusals += cross_refusals(model, decoder)
        tail = find_tail(model, axes.batch, axes.sequence) if self.logits == "last" else None
        if isinstance(tail, str):
            refusals.append(Refusal(LOGITS, tail))
        if refusals or isinstance(tail, str):
            return refusals
        before = model.clone() if self.dtype == "int8" else model
        _stand_in(decoder, stand_ins)
        padding = PaddingIds(model, decoder.tokens, axes)
        undo.callback(padding.undo)
        ids = padding.replace()
        lengths = ir.val(LENGTHS, ir.DataType.INT64, [axes.batch])
        positions = CachePositions(model, axes, lengths, decoder.tokens)
        undo.callback(positions.discard)
        refusals += [
            dataclasses.replace(refusal, reason=padding.problems.get(refusal.site, refusal.reason))
            for refusal in positions.prepare(decoder.own, self.max, decoder.beside)
        ]
        refusals += mixing_refusals(model, axes)
        if refusals:
            return refusals
        scales = calibrate(before, ctx) if self.dtype == "int8" else {}
        notes = [f"token {token} is taken for padding, at the end of rows" for token in ids]
        return _Plan(lengths, positions, tail, scales, notes)

    def _rewrite(self, model: ir.Model, decoder: Decoder, plan: _Plan) -> PassResult:
        lengths, positions = plan.lengths, plan.positions
        sites = _sites(decoder)
        masks = positions.keep()
        model.graph.inputs.insert(1 + model.graph.inputs.index(decoder.tokens), lengths)
        if plan.tail is not None:
            keep_last_tokens(model, find_again(model, plan.tail), after=lengths)
        valid = insert_valid_lengths(model, decoder.tokens, lengths)
        for index, (node, site) in enumerate(zip(decoder.own, sites, strict=False)):
            self._rewrite_site(model, decoder, index, valid, masks.get(node), plan.scales.get(site))
        self._count_keys(model, decoder, positions.keys, valid)
        if decoder.cross:
            common.TopologicalSortPass()(model)
            keep_encoded(model, decoder)
        remove_unused_overloads(model)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        common.ShapeInferencePass()(model)
        notes = [f"positions follow {LENGTHS} at {positions.places} place(s)", *plan.notes]
        if decoder.cross:
            notes.append(f"the encoder is run once, for {len(decoder.cross)} sites")
        details = {"layout": self._layout(), "logits": self.logits, "dtype": self.dtype}
        return PassResult(sites, notes=tuple(notes), details=details)

    def _count_keys(
        self, model: ir.Model, decoder: Decoder, keys: ir.Value, valid: ir.Value
    ) -> None:
        """What is counted as keys after the call: as many as `present` has."""
        name = past_name(0, _part(decoder, "key"))
        past = next(value for value in model.graph.inputs if value.name == name)
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
        decoder: Decoder,
        index: int,
        valid: ir.Value,
        mask: ir.Value | None,
        scales: CacheScales | None,
    ) -> None:
        node, batch = decoder.own[index], decoder.axes.batch
        named = dict(zip(INPUTS, node.inputs, strict=False)) | {"mask": mask}
        inputs = {key: value for key, value in named.items() if value is not None}
        tokens = self.max if self._layout() == "static" else "past_sequence"
        for part in ("key", "value"):
            name = past_name(index, _part(decoder, part))
            inputs[f"past_{part}"] = past_input(model, name, inputs[part], batch, tokens)
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
            output.name = present_name(index, _part(decoder, part))
            model.graph.outputs.append(output)

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        """All attention among the tokens has a cache, or none has."""
        cached = [bool(read_spec(node).cache) for node in read_decoder(model).own]
        if any(cached) and not all(cached):
            raise PassContractError("only some sites have a cache", where=self.name)


def _sites(decoder: Decoder) -> tuple[str, ...]:
    return tuple(str(node.outputs[0].name) for node in (*decoder.own, *decoder.cross))


def _part(decoder: Decoder, part: str) -> str:
    return f"decoder.{part}" if decoder.cross else part


def _stand_in(decoder: Decoder, stand_ins: StandIns) -> None:
    for value in decoder.companions:
        if role(decoder, value) == PADDING:
            stand_ins.ones(value)
        elif role(decoder, value) == POSITIONS:
            stand_ins.positions(value)
