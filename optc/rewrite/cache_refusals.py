"""What stands in the way of a cache: inputs, attention, and operators that combine tokens."""

from __future__ import annotations

import onnx_ir as ir

from optc.core.base import Refusal
from optc.ir.flash_attention import read_spec
from optc.ir.interface import PADDING, POSITIONS
from optc.ir.mixing import mixing_nodes
from optc.ir.recount import TokenAxes
from optc.ir.stand_ins import StandIns, padding_problem
from optc.rewrite.decoder import Decoder, heads_and_size

__all__ = ["input_refusals", "mixing_refusals", "own_refusals", "role"]


def role(decoder: Decoder, value: ir.Value) -> str:
    """What an input is called, without the word that tells it from the encoder's."""
    return str(value.name).removeprefix("decoder_" if decoder.cross else "")


def input_refusals(model: ir.Model, decoder: Decoder, stand_ins: StandIns) -> list[Refusal]:
    """Inputs besides the tokens: derived ones, and those with one entry per token."""
    axes, tokens, found = decoder.axes, decoder.tokens.name, []
    for value in decoder.companions:
        reason = ""
        called = role(decoder, value)
        if called in {PADDING, POSITIONS}:
            stand_ins.name_axes(value)
        names = [d.value if isinstance(d, ir.SymbolicDim) else None for d in value.shape or ()]
        if names[:2] != [axes.batch, axes.sequence]:
            reason = f"the input is {value.shape}, not one entry per token of '{tokens}'"
        elif called == PADDING:
            reason = padding_problem(model, value, axes)
        if reason:
            found.append(Refusal(str(value.name), reason))
    return found


def mixing_refusals(model: ir.Model, axes: TokenAxes) -> list[Refusal]:
    """Operators besides attention that combine tokens, or may."""
    found = mixing_nodes(model, axes.sequence)
    return [Refusal(str(mixing.node.outputs[0].name), mixing.reason) for mixing in found]


def own_refusals(decoder: Decoder) -> list[Refusal]:
    """Attention among the tokens whose keys and values cannot be kept."""
    found = []
    for node in decoder.own:
        spec, key = read_spec(node), node.inputs[1]
        shape = key.shape if key is not None else None
        reason = ""
        if not spec.causal:
            reason = "the attention is not causal, so it cannot be computed token by token"
        elif key is None or shape is None or heads_and_size(key) is None:
            reason = "the number and size of its key heads are not known"
        elif not decoder.axes.is_count(shape[2]):
            reason = f"its keys do not come from '{decoder.tokens.name}'"
        if reason:
            found.append(Refusal(str(node.outputs[0].name), reason))
    return found
