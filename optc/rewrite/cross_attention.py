"""Attention to an encoder in a graph that gets a cache: keys and values are computed once.

What stands in the way is said per site:

1. A cross site hides later keys, or keys by distance: neither means anything across.
2. Its keys or values, or its mask, depend on the tokens or on their positions.
3. The decoder uses something else of the encoder, which would be computed again at every call.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.core.base import Refusal
from optc.ir.flash_attention import INPUTS, read_spec
from optc.ir.interface import past_name, present_name
from optc.ir.probe import Probe, ProbeFailure
from optc.ir.recount import TokenAxes
from optc.rewrite.cache_inputs import past_input
from optc.rewrite.decoder import Decoder, heads_and_size
from optc.rewrite.encode_once import computed_again, encode_once, keep

__all__ = ["cross_refusals", "keep_encoded"]

_PARTS = ("key", "value")
_TOKENS = 7


def cross_refusals(model: ir.Model, decoder: Decoder) -> list[Refusal]:
    """Why the sites of a decoder that look at an encoder cannot have a cache.

    Args:
        model: The model, in topological order.
        decoder: Its decoder.
    """
    if not decoder.cross:
        return []
    found = [Refusal(str(n.outputs[0].name), _refusal(model, n, decoder)) for n in decoder.cross]
    again = computed_again(model, _encoded(decoder), decoder.beside)
    reason = "the decoder uses it of the encoder besides keys and values, at every call"
    return [r for r in found if r.reason] + [
        Refusal(str(node.outputs[0].name), reason) for node in again
    ]


def _refusal(model: ir.Model, node: ir.Node, decoder: Decoder) -> str:
    spec, axes = read_spec(node), decoder.axes
    named = dict(zip(INPUTS, node.inputs, strict=False))
    if spec.causal or spec.window:
        return "it hides keys of another input by their distance"
    mask = named.get("mask")
    if decoder.tokens in decoder.reads.get(mask, frozenset()):
        return "its mask depends on the tokens"
    if mask is not None and not decoder.reads.get(mask) and not _is_same_for_all(model, mask, axes):
        return "its mask depends on the positions of the tokens, or cannot be evaluated"
    for part in _PARTS:
        value = named[part]
        if value is None or heads_and_size(value) is None:
            return "the number and size of its key heads are not known"
        if value.shape is not None and axes.sequence in value.shape.free_symbols():
            return "its keys are as many as there are tokens, or an axis of theirs has that name"
    return ""


def _is_same_for_all(model: ir.Model, mask: ir.Value, axes: TokenAxes) -> bool:
    """Whether a mask [.., S, T] that depends on sizes only shows all queries the same."""
    try:
        shown = Probe(model, axes.sizes(_TOKENS)).run(mask)
    except ProbeFailure:
        return False
    return bool((shown == shown[..., :1, :]).all())


def _encoded(decoder: Decoder) -> list[ir.Value]:
    """The keys and values of all cross sites, in turn."""
    found = [node.inputs[INPUTS.index(part)] for node in decoder.cross for part in _PARTS]
    return [value for value in found if value is not None]


def keep_encoded(model: ir.Model, decoder: Decoder) -> None:
    """Give cross sites caches `past_key_values.{i}.encoder.key|value`; what gives them runs once.

    Args:
        model: The model, changed in place.
        decoder: Its decoder, without refusals.
    """
    news = _encoded(decoder)
    names = [(i, f"encoder.{part}") for i in range(len(decoder.cross)) for part in _PARTS]
    pasts = [
        past_input(model, past_name(*name), new, decoder.axes.batch, "past_encoder_sequence")
        for name, new in zip(names, news, strict=True)
    ]
    encode_once(model, keep(model, news, pasts, [present_name(*name) for name in names]))
