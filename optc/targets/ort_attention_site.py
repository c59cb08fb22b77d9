"""Read one canonical attention node: its parts, and what is known about their sizes."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.ir.flash_attention import INPUTS, AttentionSpec, read_spec

__all__ = ["Site", "read_site"]

Dim = int | str | None
"""A size: a number, a symbol, or unknown."""


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A canonical attention node.

    Attributes:
        node: The node.
        spec: Its attributes and parts.
        inputs: Values by the op's input names, those that are there.
        query: Sizes of the query, [B,Hq,S,D].
        key: Sizes of the new keys, [B,Hkv,S',D].
        value: Sizes of the new values, [B,Hkv,S',Dv].
    """

    node: ir.Node
    spec: AttentionSpec
    inputs: dict[str, ir.Value]
    query: tuple[Dim, ...]
    key: tuple[Dim, ...]
    value: tuple[Dim, ...]

    @property
    def name(self) -> str:
        """What reports call the site: the name of its output."""
        return str(self.node.outputs[0].name)

    @property
    def dtype(self) -> ir.DataType | None:
        """Element type of the query."""
        return self.inputs["query"].dtype

    @property
    def as_many_keys(self) -> bool:
        """Whether there are as many new keys as queries, whatever their number."""
        return self.query[2] is not None and self.query[2] == self.key[2]

    @property
    def heads_are_known(self) -> bool:
        """Whether the numbers of heads and their sizes are numbers."""
        dims = (self.query[1], self.query[3], self.key[1], self.value[3])
        return all(isinstance(dim, int) for dim in dims)


def read_site(node: ir.Node) -> Site:
    """Read a canonical attention node; sizes that nobody recorded are None."""
    named = zip(INPUTS, node.inputs, strict=False)
    inputs = {name: value for name, value in named if value is not None}
    sizes = (_sizes(inputs[name]) for name in ("query", "key", "value"))
    return Site(node, read_spec(node), inputs, *sizes)


def _sizes(value: ir.Value) -> tuple[Dim, ...]:
    if value.shape is None:
        return (None,) * 4
    return tuple(d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape)
