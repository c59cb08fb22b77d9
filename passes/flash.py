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
from optc.core.errors import PassContractError, RefusedError
from optc.ir.flash_attention import flash_attention_nodes
from optc.rewrite.attention import AttentionMatch, match_attention
from optc.rewrite.fuse_attention import AttentionFusion
from optc.rewrite.plain_products import spell_plainly
from optc.rewrite.standard_ops import fuse_standard_ops

__all__ = ["Flash"]


@dataclasses.dataclass(frozen=True)
class Flash(Pass):
    """Fuse attention, however it was exported, into `optc::FlashAttention`."""

    name: ClassVar[str] = "flash"
    after: ClassVar[tuple[str, ...]] = ("prune",)

    partial: bool = option(False, "accept that some attention is fused and some is not")

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Rewrite every attention site that is understood."""
        spell_plainly(model)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        fusion = AttentionFusion(model)
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
        refusals += _inside_branches(model)
        common.RemoveUnusedNodesPass()(model)
        sites = fusion.sites
        counts = {op: len(names) for op, names in standard.items()}
        notes = [f"{count} x {op} made of their parts" for op, count in counts.items()]
        notes += fusion.notes
        if not sites and not refusals:
            notes.append("the graph has no attention")
        if sites and refusals and not self.partial:
            raise _some_only(len(sites), refusals)
        details = {"kinds": fusion.kinds, "standard_ops": counts}
        beside = tuple(name for names in standard.values() for name in names)
        return PassResult(tuple(sites), tuple(refusals), tuple(notes), details, beside)

    def ensures(self, model: ir.Model, result: PassResult) -> None:
        """Every reported site is a canonical node now."""
        there = sum(1 for _ in flash_attention_nodes(model))
        if there < len(result.sites):
            problem = f"{len(result.sites)} sites are reported, {there} are there"
            raise PassContractError(problem, where=self.name)


def _inside_branches(model: ir.Model) -> list[Refusal]:
    """Attention in the branches of `If` and the bodies of loops, which is left alone."""
    inner = (node for node in model.graph.all_nodes() if node.graph is not model.graph)
    found = [(node, match_attention(node)) for node in inner]
    reason = "it is in a branch of 'If' or the body of a loop; export the model without"
    return [Refusal(str(node.outputs[0].name), reason) for node, match in found if match]


def _some_only(fused: int, refusals: list[Refusal]) -> RefusedError:
    reasons = "; ".join(f"{r.site}: {r.reason}" for r in refusals[:3])
    return RefusedError(
        f"{fused} of {fused + len(refusals)} attention sites were fused, not {reasons}",
        [(r.site, r.reason) for r in refusals],
        where="pass 'flash'",
        remedy="'optc inspect --explain-attention' shows them, flash:partial=true accepts them",
    )
