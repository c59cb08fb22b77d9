"""Lower `optc::FlashAttention` to the fastest kernel of ONNX Runtime's CPU provider that is right.

The candidates, in order of preference, are in `optc.targets.ort_attention_kernels`; each says what
it cannot do. What none of them does keeps the function's body, which the runtime inlines. The
measurements behind the order: `benchmarks/attention_ort.py`, `docs/performance.md`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import onnx_ir as ir

from optc.ir.flash_attention import flash_attention_nodes
from optc.targets.ort_attention_kernels import Kernels, refuses_grouped
from optc.targets.ort_attention_site import Site, read_site

__all__ = [
    "ATTENTION",
    "BODY",
    "GROUPED",
    "Choice",
    "attention_choice",
    "attention_choices",
    "attention_facts",
    "lower_attention",
]

GROUPED = "GroupQueryAttention"
ATTENTION = "Attention"
BODY = "function body"
_SITE, _KERNEL, _WHY = (f"optc.attention.{name}" for name in ("site", "kernel", "why"))


@dataclasses.dataclass(frozen=True)
class Choice:
    """What became of one attention site.

    Attributes:
        site: Name of the canonical node's output.
        kernel: `GROUPED`, `ATTENTION` or `BODY`.
        why: Why no kernel before it in the order of preference; empty for the first.
    """

    site: str
    kernel: str
    why: str


def lower_attention(model: ir.Model) -> list[Choice]:
    """Replace every canonical attention for which there is a kernel.

    Args:
        model: Changed in place; each attention node says in its metadata what was chosen and why.

    Returns:
        One choice per site, in graph order.
    """
    kernels = Kernels(model)
    return [_lower(kernels, read_site(node)) for node in list(flash_attention_nodes(model))]


def _lower(kernels: Kernels, site: Site) -> Choice:
    name, why = site.name, list[str]()  # writing a kernel gives the name away
    for kernel, refuses, write in (
        (GROUPED, refuses_grouped, kernels.write_grouped),
        (ATTENTION, kernels.refuses_attention, kernels.write_attention),
    ):
        reason = refuses(site)
        if not reason:
            return _note(write(site), Choice(name, kernel, "; ".join(why)))
        why.append(f"{kernel}: {reason}")
    return _note(site.node, Choice(name, BODY, "; ".join(why)))


def _note(node: ir.Node, choice: Choice) -> Choice:
    node.metadata_props.update({_SITE: choice.site, _KERNEL: choice.kernel, _WHY: choice.why})
    return choice


def attention_choices(model: ir.Model) -> list[Choice]:
    """The choices of a lowered model, also of one that was saved and loaded again."""
    choices = (attention_choice(node) for node in model.graph.all_nodes())
    return [choice for choice in choices if choice is not None]


def attention_choice(node: ir.Node) -> Choice | None:
    """The choice that a node stands for."""
    note = node.metadata_props
    return Choice(note[_SITE], note[_KERNEL], note[_WHY]) if _KERNEL in note else None


def attention_facts(model: ir.Model) -> dict[str, Any]:
    """The choices of a lowered model for a manifest: sites by kernel, and by reason.

    Returns:
        `kernels`, kernel to number of sites; `reasons`, reason to names of sites, for sites that
        did not get the first kernel. Empty where there is no attention.
    """
    choices = attention_choices(model)
    if not choices:
        return {}
    reasons: dict[str, list[str]] = {}
    for choice in choices:
        if choice.why:
            reasons.setdefault(choice.why, []).append(choice.site)
    kernels = Counter(choice.kernel for choice in choices)
    return {"attention": {"kernels": dict(kernels), "reasons": reasons}}
