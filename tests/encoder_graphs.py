"""A one-layer encoder with a one-layer decoder, as ONNX text."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from weights import bake

from optc.core.context import Context
from optc.passes.flash import Flash
from optc.passes.kv import KV

__all__ = ["VOCABULARY", "encoder_decoder", "fused", "with_cache"]

VOCABULARY = 16
_WEIGHTS = [f"w{part}{name}" for part in "eos" for name in "qkv"]


def encoder_decoder(
    *,
    mask: bool = False,
    more: str = "z = Add(x3, y3)",
    target: str = "target",
    across: tuple[str, str] = ("", ""),
) -> str:
    """`input_ids` and `decoder_input_ids` to `logits`, width 16, 2 heads, learned positions.

    Args:
        mask: Whether there is an `attention_mask` over the encoder's keys.
        more: What makes `z` [B,S,16] of the decoder (`x3`, `y3`) and the encoder (`memory`).
        target: Name of the axis of the decoder's tokens.
        across: Name of another mask of the attention across, and the nodes that make it.
    """
    ones = ", int64[batch,length] attention_mask" if mask else ""
    weights = "".join(f", float[16,16] {name}" for name in _WEIGHTS)
    return f"""<ir_version: 10, opset_import: ["": 23]>
agraph (int64[batch,length] input_ids, int64[batch,{target}] decoder_input_ids{ones},
        float[16,16] table, float[64,16] places, float[16,16] head{weights})
    => (float[batch,{target},16] logits) {{
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    first = Constant<value_ints = [0]>()
    split = Constant<value_ints = [0, 0, 2, 8]>()
    merge = Constant<value_ints = [0, 0, 16]>()
    {_MASK if mask else ""}
    {_embedded("source", "input_ids")}
    {_attention("e", "source", "source", "" if not mask else "seen", "")}
    memory = Add(source, ye)
    {_embedded("text", "decoder_input_ids")}
    {_attention("o", "text", "text", "", "is_causal = 1")}
    x3 = Add(text, yo)
    {across[1]}
    {_attention("s", "x3", "memory", across[0] or ("" if not mask else "seen"), "")}
    y3 = Identity(ys)
    {more}
    logits = MatMul(z, head)
}}"""


_MASK = """
    middle = Constant<value_ints = [1, 2]>()
    words = Cast<to = 9>(attention_mask)
    seen = Unsqueeze(words, middle)
"""


def _embedded(name: str, ids: str) -> str:
    return f"""
    {name}_1d = Shape<start = 1, end = 2>({ids})
    {name}_count = Squeeze({name}_1d)
    {name}_range = Range(zero, {name}_count, one)
    {name}_at = Unsqueeze({name}_range, first)
    {name}_here = Gather(places, {name}_at)
    {name}_words = Gather(table, {ids})
    {name} = Add({name}_words, {name}_here)
    """


def _attention(part: str, query: str, keys: str, mask: str, attributes: str) -> str:
    heads = [
        f"""
    {n}{part}2 = MatMul({source}, w{part}{n})
    {n}{part}4 = Reshape({n}{part}2, split)
    {n}{part} = Transpose<perm = [0, 2, 1, 3]>({n}{part}4)"""
        for n, source in (("q", query), ("k", keys), ("v", keys))
    ]
    operands = ", ".join([f"q{part}", f"k{part}", f"v{part}", *([mask] if mask else [])])
    call = f"Attention<{attributes}>" if attributes else "Attention"
    return f"""{"".join(heads)}
    o{part} = {call}({operands})
    t{part} = Transpose<perm = [0, 2, 1, 3]>(o{part})
    y{part} = Reshape(t{part}, merge)
    """


def fused(graph: Callable[[str], ir.Model], text: str) -> ir.Model:
    """The graph with its weights baked in and its attention canonical."""
    model = bake(graph(text))
    Flash().run(model, Context())
    return model


def with_cache(graph: Callable[[str], ir.Model], text: str, kv: KV | None = None) -> ir.Model:
    """The same with caches."""
    kv = kv or KV()
    model = fused(graph, text)
    kv.requires(model, Context())
    result = kv.run(model, Context())
    kv.ensures(model, result)
    assert result.rewrites == 2, result
    return model
