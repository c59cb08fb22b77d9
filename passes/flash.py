"""`flash`: every attention into the canonical op `optc::FlashAttention`.

1. Sites are found by use-def edges: the standard `Attention` op, or Softmax between two products
   (`optc.rewrite.attention`).
2. Keys and values are taken from before the repetition of grouped heads and before transposition,
   when sending numbers through the chain shows that it is nothing else (`optc.rewrite.movement`).
3. Masks that mean causal, or causal within a window, become attributes; what is left is handed to
   the op as it is (`optc.ir.masks`).
4. Rotary embeddings and RMS norms become the standard ops, with tables of the right batch.
5. The mask arithmetic that nobody uses any more is removed.

Source of the fused op: FlashAttention, Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.base import Pass, PassResult, Refusal, option
from optc.core.context import Context
from optc.core.errors import PassContractError, UnsupportedError
from optc.ir.flash_attention import AttentionSpec, add_flash_attention, flash_attention_nodes
from optc.ir.masks import MaskMeaning, read_mask
from optc.ir.probe import Probe
from optc.rewrite.attention import AttentionMatch, match_attention
from optc.rewrite.mask_graph import join_masks
from optc.rewrite.movement import (
    Heads,
    flat_transposed,
    flattened,
    is_same,
    repeated,
    resolve_heads,
    transposed,
)
from optc.rewrite.scores import MaskTerm
from optc.rewrite.standard_ops import fuse_standard_ops

__all__ = ["Flash"]

_PROBE_SIZES = (2, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59)


@dataclasses.dataclass(frozen=True)
class Flash(Pass):
    """Fuse attention, however it was exported, into `optc::FlashAttention`."""

    name: ClassVar[str] = "flash"
    after: ClassVar[tuple[str, ...]] = ("prune",)

    partial: bool = option(False, "accept that some attention is fused and some is not")

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Rewrite every attention site that is understood."""
        fusion = _Fusion(model)
        standard = fuse_standard_ops(model, fusion.probe, ctx.wants)
        refusals: list[Refusal] = []
        nodes = list(model.graph)
        for done, node in enumerate(nodes):
            ctx.progress("fusing attention", done + 1, len(nodes))
            match = match_attention(node)
            if isinstance(match, AttentionMatch):
                if not ctx.wants(str(match.output.name)):
                    continue
                match = fusion.rewrite(match)
            if match is not None:
                refusals.append(match)
        common.RemoveUnusedNodesPass()(model)
        sites = fusion.sites
        counts = {op: len(names) for op, names in standard.items()}
        notes = [f"{count} x {op} made of their parts" for op, count in counts.items()]
        if not sites and not refusals:
            notes.append("the graph has no attention")
        if sites and refusals and not self.partial:
            raise _some_only(len(sites), refusals)
        details = {"kinds": fusion.kinds, "standard_ops": counts}
        beside = tuple(name for names in standard.values() for name in names)
        return PassResult(tuple(sites), tuple(refusals), tuple(notes), details, beside)

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        """Every reported site is a canonical node now."""
        names = {node.outputs[0].name for node in flash_attention_nodes(model)}
        if missing := set(result.sites) - names:
            raise PassContractError(f"reported but not there: {sorted(missing)}", where=self.name)


def _some_only(fused: int, refusals: list[Refusal]) -> UnsupportedError:
    reasons = "; ".join(f"{r.site}: {r.reason}" for r in refusals[:3])
    return UnsupportedError(
        f"{fused} of {fused + len(refusals)} attention sites were fused, not {reasons}",
        where="pass 'flash'",
        remedy="'optc inspect --explain-attention' shows them, flash:partial=true accepts them",
    )


class _Fusion:
    """The rewriting of one model: masks are read once, however many layers share them."""

    def __init__(self, model: ir.Model):
        self.model = model
        symbols = {s for v in model.graph.inputs if v.shape for s in v.shape.free_symbols()}
        fixed = {d for n in model.graph for v in n.outputs if v.shape for d in v.shape}
        free = [size for size in _PROBE_SIZES if size not in fixed]  # no size is like another
        self.probe = Probe(model, dict(zip(sorted(symbols), free, strict=False)))
        self.sites: list[str] = []
        self._joined: dict[tuple[object, ...], tuple[ir.Value | None, str]] = {}
        self.kinds: dict[str, int] = {}
        self._meanings: dict[tuple[MaskTerm, int | str | None, int | str | None], MaskMeaning] = {}

    def rewrite(self, match: AttentionMatch) -> Refusal | None:
        """Replace one site, or say why not."""
        name = str(match.output.name)
        query = self._query(match)
        shape = self.probe.shape_of(query.value) if query is not None else None
        if query is None or shape is None or len(shape) != 4:
            return Refusal(name, "the query is not known to be [B,H,S,D]")
        operands = self._operands(match, shape[1])
        if operands is None:
            return Refusal(name, "the layout of its keys and values is not understood")
        key, value = operands
        if not _same_batch(query.value, key.value, value.value):
            return Refusal(name, "queries, keys and values are not known to have the same batch")
        scale = match.scale * query.factor * key.factor
        if not scale > 0:
            return Refusal(name, f"its scores are multiplied by {scale:g}, which kernels do not do")
        counts = _count(query.value), _count(key.value)
        if match.causal and (counts[0] is None or counts[0] != counts[1]):
            return Refusal(name, "it is causal, and queries and keys may differ in number")
        causal, window, left = self._masks(match, counts)
        if causal and window is None:
            return Refusal(name, "it has two different windows")
        at = match.output.producer()
        assert at is not None
        same = (*left, *counts, query.value.dtype)  # layers share what their masks become
        if None in same or same not in self._joined:
            self._joined[same] = join_masks(self.model, at, left, query.value, key.value)
        mask, kind = self._joined[same]
        spec = AttentionSpec(
            scale=scale,
            causal=causal,
            window=window or 0,
            softcap=match.softcap,
            mask=kind,
        )
        inputs = {"query": query.value, "key": key.value, "value": value.value}
        if mask is not None:
            inputs["mask"] = mask
        self._replace(at, match, spec, inputs)
        return None

    def _query(self, match: AttentionMatch) -> Heads | None:
        if not match.flat:
            return Heads(match.query, 1, 1.0)
        return resolve_heads(self.probe, match.query, flattened, None)

    def _operands(self, match: AttentionMatch, heads: int) -> tuple[Heads, Heads] | None:
        relation = transposed if match.key_transposed else repeated
        straight = repeated
        if match.flat:
            relation, straight = flat_transposed, flattened
        for grouped in (True, False):
            key = resolve_heads(self.probe, match.key, relation, heads, grouped=grouped)
            value = resolve_heads(self.probe, match.value, straight, heads, grouped=grouped)
            if key is None and match.key_transposed and not grouped:
                key = self._transpose_back(match, heads)
            if value is None or key is None or value.factor != 1.0:
                continue
            if key.repeat == value.repeat:
                return key, value
        return None

    def _transpose_back(self, match: AttentionMatch, heads: int) -> Heads | None:
        """Keys that never exist as [B,H,T,D]: transpose what enters the product."""
        shape = match.key.shape
        if shape is None or len(shape) != 4 or shape[1] != heads:
            return None
        node = ir.node("Transpose", [match.key], {"perm": [0, 1, 3, 2]})
        at = match.output.producer()
        assert at is not None
        self.model.graph.insert_before(at, node)
        node.outputs[0].type = match.key.type
        node.outputs[0].shape = ir.Shape([shape[0], shape[1], shape[3], shape[2]])
        return Heads(node.outputs[0], 1, 1.0)

    def _masks(
        self, match: AttentionMatch, counts: tuple[int | str | None, int | str | None]
    ) -> tuple[bool, int | None, list[MaskTerm]]:
        causal, window, left = match.causal, 0, []
        for term in match.masks:
            meaning = self._meaning(term, counts)
            if meaning.residual:
                left.append(term)
            causal = causal or meaning.causal
            if meaning.window and window and meaning.window != window:
                return True, None, left
            window = meaning.window or window
        return causal, window, left

    def _meaning(
        self, term: MaskTerm, counts: tuple[int | str | None, int | str | None]
    ) -> MaskMeaning:
        key = (term, *counts)
        if key not in self._meanings:
            found = read_mask(self.model, term.value, *counts, negated=term.negated)
            self._meanings[key] = found
        return self._meanings[key]

    def _replace(
        self,
        at: ir.Node,
        match: AttentionMatch,
        spec: AttentionSpec,
        inputs: dict[str, ir.Value],
    ) -> None:
        output, name = match.output, str(match.output.name)
        node = add_flash_attention(self.model, spec, inputs, name=name)
        self.model.graph.insert_before(at, node)
        made = node.outputs[0]
        output.name = f"{name}_unfused"
        if match.flat:
            self._flatten(node, output)
        else:
            made.type, made.shape = output.type, output.shape
            ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
        self.sites.append(name)
        kind = spec.overload or "plain"
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def _flatten(self, node: ir.Node, output: ir.Value) -> None:
        """Give the users of [B*H,S,D] what they had, or [B,H,S,D] where they go back to it."""
        made = node.outputs[0]
        rest = ir.node("Constant", [], {"value_ints": [-1]})
        last = ir.node("Shape", [made], {"start": 2, "end": 4})
        shape = ir.node("Concat", [rest.outputs[0], last.outputs[0]], {"axis": 0})
        flat = ir.node("Reshape", [made, shape.outputs[0]])
        flat.outputs[0].type, flat.outputs[0].shape = output.type, output.shape
        self.model.graph.insert_after(node, [rest, last, shape, flat])
        ir.convenience.replace_all_uses_with(output, flat.outputs[0], replace_graph_outputs=True)
        for user in [use.node for use in flat.outputs[0].uses()]:
            back = user.outputs[0]
            if user.op_type != "Reshape" or back.is_graph_output():
                continue
            if is_same(self.probe, made, back):
                ir.convenience.replace_all_uses_with(back, made)


def _same_batch(*values: ir.Value) -> bool:
    dims = [v.shape[0] if v.shape is not None else None for v in values]
    named = [d.value if isinstance(d, ir.SymbolicDim) else d for d in dims]
    return named[0] is not None and all(d == named[0] for d in named)


def _count(value: ir.Value) -> int | str | None:
    """The number of tokens of [B,H,S,D], or its symbol."""
    dim = value.shape[2] if value.shape is not None and len(value.shape) == 4 else None
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim
