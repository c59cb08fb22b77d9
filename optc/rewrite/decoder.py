"""Which attention of a graph is a decoder's own, which is across to an encoder, by dataflow.

    encoder site: neither queries nor keys depend on the tokens
    own site:     keys and values depend on the tokens
    cross site:   queries depend on the tokens; keys and values on other inputs only

The tokens are the integer input [B,S] that the keys of causal attention depend on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from optc.core.errors import UnsupportedError
from optc.ir.dependence import Reads, inputs_read
from optc.ir.flash_attention import flash_attention_nodes, read_spec
from optc.ir.interface import LENGTHS, TOKEN_INPUTS

__all__ = ["Decoder", "heads_and_size", "past_input", "read_decoder"]

_WHERE = "pass 'kv'"
_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder as its graph shows it.

    Attributes:
        tokens: Its token input.
        reads: Which inputs each value depends on.
        own: Attention among the tokens, canonical nodes in graph order.
        cross: Attention from the tokens to an encoder, likewise.
    """

    tokens: ir.Value
    reads: Reads
    own: tuple[ir.Node, ...]
    cross: tuple[ir.Node, ...]

    @property
    def batch(self) -> str:
        """Symbol of the batch."""
        return self._symbols[0]

    @property
    def sequence(self) -> str:
        """Symbol of the number of tokens.

        Raises:
            UnsupportedError: The axes of the tokens are not free, or one name is on both.
        """
        return self._symbols[1]

    @property
    def _symbols(self) -> tuple[str, str]:
        shape = self.tokens.shape
        names = [d.value if isinstance(d, ir.SymbolicDim) else None for d in shape or ()]
        if len(names) != 2 or names[0] is None or names[1] is None or names[0] == names[1]:
            raise UnsupportedError(
                f"'{self.tokens.name}' has shape {shape}, not [batch, sequence] with both dynamic",
                where=_WHERE,
                remedy="export with dynamic batch and sequence",
            )
        return names[0], names[1]


def read_decoder(model: ir.Model) -> Decoder:
    """Sort the canonical attention of the main graph.

    Raises:
        UnsupportedError: There is no token input, or an input that is not understood.
    """
    nodes = [node for node in flash_attention_nodes(model) if node.graph is model.graph]
    reads = inputs_read(model)
    tokens = _token_input(model, nodes, reads)
    own = tuple(n for n in nodes if any(tokens in reads.get(v, ()) for v in n.inputs[1:3]))
    cross = tuple(n for n in nodes if n not in own and _is_cross(n, tokens, reads))
    decoder = Decoder(tokens, reads, own, cross)
    _check_others(model, decoder)
    return decoder


def _is_cross(node: ir.Node, tokens: ir.Value, reads: Reads) -> bool:
    query, key, value = node.inputs[:3]
    is_computed = bool(reads.get(key)) and bool(reads.get(value))
    return is_computed and tokens in reads.get(query, frozenset())


def _token_input(model: ir.Model, nodes: Sequence[ir.Node], reads: Reads) -> ir.Value:
    """The integer input [B,S] that causal keys depend on; any keys where none is causal."""
    inputs = [v for v in model.graph.inputs if v.const_value is None]
    causal = [node for node in nodes if read_spec(node).causal] or list(nodes)
    read = reads.get(causal[0].inputs[1], frozenset()) if causal else frozenset(inputs)
    found = [v for v in inputs if v in read and _is_tokens(v)]
    named = [v for v in found if v.name in TOKEN_INPUTS]
    if len(named) == 1:
        return named[0]
    wanted = " or ".join(f"'{name}'" for name in TOKEN_INPUTS)
    names = ", ".join(str(v.name) for v in found or inputs)
    raise UnsupportedError(
        f"the causal attention reads no input of token ids named {wanted} (but {names})",
        where=_WHERE,
        remedy=f"export with the tokens as {wanted}",
    )


def _is_tokens(value: ir.Value) -> bool:
    return value.dtype in _INTEGERS and value.shape is not None and len(value.shape) == 2


def _check_others(model: ir.Model, decoder: Decoder) -> None:
    """Other inputs may say what the encoder reads; what runs along the tokens is not known."""
    inputs = [v for v in model.graph.inputs if v.const_value is None and v is not decoder.tokens]
    if any(v.name == LENGTHS for v in inputs):
        return
    along = [v for v in inputs if not decoder.cross or decoder.sequence in _axes(v)]
    if not along:
        return
    names = ", ".join(str(v.name) for v in along)
    if decoder.cross:
        problem = f"an axis of {names} has the name of the tokens' axis, '{decoder.sequence}'"
        remedy = "give the encoder's axes names of their own, or export without the input"
    else:
        problem = f"inputs besides '{decoder.tokens.name}' are not understood yet: {names}"
        remedy = "export without them"
    raise UnsupportedError(problem, where=_WHERE, remedy=remedy)


def _axes(value: ir.Value) -> set[str]:
    return set(value.shape.free_symbols()) if value.shape is not None else set()


def heads_and_size(value: ir.Value) -> tuple[int, int] | None:
    """H and D of [B,H,T,D]; None where they are not numbers."""
    if value.shape is None or len(value.shape) != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def past_input(
    model: ir.Model, name: str, new: ir.Value, batch: str, tokens: int | str | None
) -> ir.Value:
    """A new input [B,H,tokens,D] of a graph, a cache of what `new` [B,H,S,D] is appended to."""
    known = heads_and_size(new)
    assert known is not None
    heads, size = known
    value = ir.Value(name=name, shape=ir.Shape([batch, heads, tokens, size]), type=new.type)
    model.graph.inputs.append(value)
    return value
