"""Which attention of a graph is a decoder's own, which is across to an encoder, by dataflow.

    encoder site: neither queries nor keys depend on the tokens
    own site:     keys and values depend on the tokens
    cross site:   queries depend on the tokens; keys and values on other inputs only

The tokens are the integer input [B,S] that the keys of causal attention depend on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from optc.core.errors import UnsupportedError
from optc.ir.dependence import Reads, inputs_read
from optc.ir.flash_attention import flash_attention_nodes, read_spec
from optc.ir.interface import TOKEN_INPUTS
from optc.ir.recount import TokenAxes

__all__ = ["Decoder", "heads_and_size", "read_decoder"]

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
        others: The other inputs of the graph.
    """

    tokens: ir.Value
    reads: Reads
    own: tuple[ir.Node, ...]
    cross: tuple[ir.Node, ...]
    others: tuple[ir.Value, ...]

    @property
    def axes(self) -> TokenAxes:
        """The axes of the tokens, and of the other inputs.

        Raises:
            UnsupportedError: The axes of the tokens are not free, or one name is on both.
        """
        shape = self.tokens.shape
        names = [d.value if isinstance(d, ir.SymbolicDim) else None for d in shape or ()]
        if len(names) != 2 or names[0] is None or names[1] is None or names[0] == names[1]:
            raise UnsupportedError(
                f"'{self.tokens.name}' has shape {shape}, not [batch, sequence] with both dynamic",
                where=_WHERE,
                remedy="export with dynamic batch and sequence",
            )
        shapes = [list(v.shape or ()) for v in self.others]
        batches = _symbols(dims[0] for dims in shapes if dims) - set(names)
        more = _symbols(dim for dims in shapes for dim in dims[1:]) - batches - set(names)
        return TokenAxes(names[0], names[1], tuple(sorted(batches)), tuple(sorted(more)))

    @property
    def companions(self) -> tuple[ir.Value, ...]:
        """Other inputs that are about the tokens.

        Beside an encoder those that have the tokens' axis, or are called the decoder's; else all.

        Raises:
            UnsupportedError: See `axes`.
        """
        if not self.cross:
            return self.others
        sequence = self.axes.sequence
        return tuple(
            value
            for value in self.others
            if sequence in _symbols(value.shape or ()) or str(value.name).startswith("decoder_")
        )

    @property
    def beside(self) -> frozenset[ir.Node]:
        """Nodes that depend on inputs, and on none that is about the tokens: the encoder.

        Raises:
            UnsupportedError: See `axes`.
        """
        if not self.cross:
            return frozenset()
        about = {self.tokens, *self.companions}
        beside = (
            v for v, read in self.reads.items() if v is not None and read and not about & read
        )
        return frozenset(node for v in beside if (node := v.producer()) is not None)


def _symbols(dims: Iterable[int | ir.SymbolicDim]) -> set[str]:
    return {s for dim in dims if isinstance(dim, ir.SymbolicDim) for s in dim.free_symbols()}


def read_decoder(model: ir.Model) -> Decoder:
    """Sort the canonical attention of the main graph.

    Raises:
        UnsupportedError: There is no token input.
    """
    nodes = [node for node in flash_attention_nodes(model) if node.graph is model.graph]
    reads = inputs_read(model)
    tokens = _token_input(model, nodes, reads)
    own = tuple(n for n in nodes if any(tokens in reads.get(v, ()) for v in n.inputs[1:3]))
    cross = tuple(n for n in nodes if n not in own and _is_cross(n, tokens, reads))
    others = tuple(v for v in model.graph.inputs if v.const_value is None and v is not tokens)
    return Decoder(tokens, reads, own, cross, others)


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


def heads_and_size(value: ir.Value) -> tuple[int, int] | None:
    """H and D of [B,H,T,D]; None where they are not numbers."""
    if value.shape is None or len(value.shape) != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None
