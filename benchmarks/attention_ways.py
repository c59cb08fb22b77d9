"""The ways to write one attention that are compared."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optc.ir.flash_attention import AttentionSpec, add_flash_attention

__all__ = ["CONTRIB", "WAYS", "Ops", "Site", "Size", "Way"]

CONTRIB = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class Size:
    """The measures of a decoder."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    kv_heads: int = 4
    hidden: int = 2048
    vocabulary: int = 32000

    @property
    def dim(self) -> int:
        """Size of one head."""
        return self.width // self.heads

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return float(self.dim) ** -0.5


class Ops:
    """Writes nodes, one call each, at the end of a graph."""

    def __init__(self, graph: ir.Graph):
        self.graph = graph

    def __call__(self, name: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """One output; `domain` is the only keyword that is no attribute."""
        return self.several(1, name, *inputs, **attributes)[0]

    def several(
        self, count: int, name: str, *inputs: ir.Value | None, **attributes: Any
    ) -> Sequence[ir.Value]:
        """`count` outputs."""
        domain = attributes.pop("domain", "")
        node = ir.node(name, inputs, attributes, domain=domain, num_outputs=count)
        self.graph.append(node)
        return node.outputs

    def ints(self, *values: int) -> ir.Value:
        """A constant, int64 [n]."""
        return self("Constant", value_ints=list(values))

    def weight(self, name: str, *shape: int) -> ir.Value:
        """Random float32, the same for the same shape and name."""
        rng = np.random.default_rng([len(name), *name.encode(), *shape])
        array = rng.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5)
        return self.constant(name, array)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer."""
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value


@dataclasses.dataclass(frozen=True)
class Site:
    """What one attention gets.

    Attributes:
        op: Writes nodes.
        model: The model in the making.
        size: Its measures.
        qkv: Query, key and value [B,S,H*D]; or the three packed in one.
        past: Keys and values of earlier tokens, [B,Hkv,T,D].
        shared: Values that all layers share, by name.
        index: Number of the layer.
    """

    op: Ops
    model: ir.Model
    size: Size
    qkv: tuple[ir.Value, ...]
    past: tuple[ir.Value, ir.Value]
    shared: dict[str, ir.Value]
    index: int

    def split(self, value: ir.Value, heads: int) -> ir.Value:
        """[B,S,H*D] to [B,H,S,D]."""
        apart = self.op("Reshape", value, self.op.ints(0, 0, heads, self.size.dim))
        output = self.op("Transpose", apart, perm=[0, 2, 1, 3])
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(["batch", heads, "sequence", self.size.dim])
        return output

    def join(self, value: ir.Value) -> ir.Value:
        """[B,H,S,D] to [B,S,H*D]."""
        turned = self.op("Transpose", value, perm=[0, 2, 1, 3])
        return self.op("Reshape", turned, self.op.ints(0, 0, self.size.width))

    def turn(self, value: ir.Value, heads: int | None = None) -> ir.Value:
        """Rotary embedding of [B,H,S,D], or of [B,S,H*D] where `heads` is given."""
        extra = {} if heads is None else {"num_heads": heads}
        tables = self.shared["cos"], self.shared["sin"]
        output = self.op("RotaryEmbedding", value, *tables, **extra)
        output.type, output.shape = value.type, value.shape
        return output

    def heads(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query, key and value as [B,H,S,D], positions applied."""
        query, key, value = self.qkv
        heads, kv_heads = self.size.heads, self.size.kv_heads
        return (
            self.turn(self.split(query, heads)),
            self.turn(self.split(key, kv_heads)),
            self.split(value, kv_heads),
        )

    def grown(self, key: ir.Value, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """All keys and values [B,Hkv,T,D], old and new."""
        old_keys, old_values = self.past
        return (
            self.op("Concat", old_keys, key, axis=2),
            self.op("Concat", old_values, value, axis=2),
        )

    def repeat(self, value: ir.Value) -> ir.Value:
        """[B,Hkv,T,D] to [B,Hq,T,D], as exporters write it."""
        heads, kv_heads, dim = self.size.heads, self.size.kv_heads, self.size.dim
        apart = self.op("Unsqueeze", value, self.op.ints(2))
        wide = self.op("Expand", apart, self.op.ints(1, 1, heads // kv_heads, 1, 1))
        return self.op("Reshape", wide, self.op.ints(0, heads, -1, dim))


Parts = Sequence[ir.Value]
"""Output [B,S,Hq*D], present keys, present values."""


def unfused(site: Site) -> Parts:
    """Product, mask, softmax, product: what exporters write."""
    op = site.op
    query, key, value = site.heads()
    keys, values = site.grown(key, value)
    turned = op("Transpose", site.repeat(keys), perm=[0, 1, 3, 2])
    scores = op("Mul", op("MatMul", query, turned), op("Constant", value_float=site.size.scale))
    weights = op("Softmax", op("Add", scores, site.shared["bias"]), axis=-1)
    return site.join(op("MatMul", weights, site.repeat(values))), keys, values


def canonical(site: Site, layout: str) -> Parts:
    """`optc::FlashAttention`: the body, or what a target makes of it."""
    spec = AttentionSpec(site.size.scale, causal=True, cache=layout, lengths=True)
    names = ("query", "key", "value", "past_key", "past_value", "lengths")
    values = (*site.heads(), *site.past, site.shared["valid"])
    inputs = dict(zip(names, values, strict=True))
    node = add_flash_attention(site.model, spec, inputs, name=f"attention_{site.index}")
    site.op.graph.append(node)
    return site.join(node.outputs[0]), *node.outputs[1:]


def attention_23(site: Site) -> Parts:
    """Standard `Attention` with past and present: every row is equally long."""
    query, key, value = site.heads()
    options = {"is_causal": 1, "scale": site.size.scale}
    found = site.op.several(3, "Attention", query, key, value, None, *site.past, **options)
    return site.join(found[0]), *found[1:]


def attention_24(site: Site) -> Parts:
    """Standard `Attention` over caches that `TensorScatter` writes."""
    op, shared = site.op, site.shared
    query, key, value = site.heads()
    pairs = zip(site.past, (key, value), strict=True)
    presents = [op("TensorScatter", old, new, shared["lengths"], axis=2) for old, new in pairs]
    options = {"is_causal": 1, "scale": site.size.scale}
    output = op("Attention", query, *presents, None, None, None, shared["valid"], **options)
    return site.join(output), *presents


def multi_head(site: Site) -> Parts:
    """`MultiHeadAttention`, which wants as many key heads as query heads."""
    op, size = site.op, site.size
    _, key, value = site.heads()
    keys, values = site.grown(key, value)
    query = site.turn(site.qkv[0], size.heads)
    options = {"num_heads": size.heads, "scale": size.scale, "domain": CONTRIB}
    operands = query, site.repeat(keys), site.repeat(values)
    output = op("MultiHeadAttention", *operands, None, None, site.shared["bias"], **options)
    return output, keys, values


def grouped(site: Site, *, any_batch: bool) -> Parts:
    """`GroupQueryAttention`; without `query_seqlens` it takes no ragged chunks."""
    size, shared, packed = site.size, site.shared, len(site.qkv) == 1
    query = site.qkv[0] if packed else site.turn(site.qkv[0], size.heads)
    key = None if packed else site.turn(site.qkv[1], size.kv_heads)
    value = None if packed else site.qkv[2]
    tables = [shared["cos_table"], shared["sin_table"]] if packed else [None, None]
    options = {"num_heads": size.heads, "kv_num_heads": size.kv_heads, "scale": size.scale}
    return site.op.several(
        3,
        "GroupQueryAttention",
        *(query, key, value, *site.past, shared["last"], shared["total"], *tables),
        *([None] * 7 + [shared["news"]] if any_batch else []),
        **options,
        do_rotary=int(packed),
        domain=CONTRIB,
    )


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to write attention.

    Attributes:
        name: For people.
        layout: `concat` grows, `static` writes into buffers.
        attend: Writes one site.
        packed: Whether query, key and value come out of one product.
        lowered: Whether the `ort` target gets the graph.
    """

    name: str
    layout: str
    attend: Callable[[Site], Parts]
    packed: bool = False
    lowered: bool = False


_grouped = functools.partial(grouped, any_batch=True)
_grouped_alone = functools.partial(grouped, any_batch=False)


def _in_both(name: str, attend: Callable[..., Parts], **options: bool) -> list[Way]:
    return [Way(name, layout, attend, **options) for layout in ("concat", "static")]


WAYS = (
    Way("unfused", "concat", unfused),
    Way("Attention-23", "concat", attention_23),
    Way("Attention-24 + TensorScatter", "static", attention_24),
    Way("MultiHeadAttention", "concat", multi_head),
    *_in_both("GroupQueryAttention, one row", _grouped_alone),
    *_in_both("GroupQueryAttention", _grouped),
    *_in_both("GroupQueryAttention, packed", _grouped, packed=True),
    *(
        Way(name, layout, functools.partial(canonical, layout=layout), lowered=lowered)
        for name, lowered in (("optc, function body", False), ("optc, lowered", True))
        for layout in ("concat", "static")
    ),
)
