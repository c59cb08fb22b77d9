"""Which of ONNX Runtime's CPU kernels compute a canonical attention, and how each is written.

* `GroupQueryAttention` (com.microsoft) reads each key head once for all its query heads, skips what
  is hidden, and writes a cache in place where input and output are one buffer. Its `query_seqlens`
  is what lets one graph take ragged chunks of several rows: without it the kernel refuses more than
  one row with more than one token and a past.
  Over an int8 cache it serves single tokens (`optc.targets.ort_attention_int8`).
* `Attention` (standard) on [B,S,H*D] operands: the numbers of the function's body, without the
  transpositions.

Every limit named here is tested against the runtime in `tests/targets/test_ort_attention.py`.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.rewrite.quant_nodes import NodeWriter
from optc.targets.ort_attention_int8 import one_or_several
from optc.targets.ort_attention_rows import RowForm
from optc.targets.ort_attention_site import Site

__all__ = ["Kernels", "refuses_grouped"]

_CONTRIB = "com.microsoft"
_INT32 = int(ir.DataType.INT32)
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
_SCALES, _QUERY_SEQLENS = 12, 16
_BY_CHANNEL = "PER_CHANNEL"
_HEAD_STEP = 8


def refuses_grouped(site: Site) -> str:
    """Why `GroupQueryAttention` does not compute a site; empty if it does."""
    spec, key = site.spec, site.key
    reasons = {
        "it is not causal": not spec.causal,
        "with a mask it is the slower one": bool(spec.mask),
        "it takes lengths only with a cache": spec.lengths and not spec.cache,
        "queries and new keys may differ in number": not site.as_many_keys,
        "the numbers of heads or their sizes are not known": not site.heads_are_known,
        "keys and values differ in size": key[3] != site.value[3],
        f"its head size is not a multiple of {_HEAD_STEP}": not _divides(_HEAD_STEP, key[3]),
        f"its element type is {_name(site.dtype)}": site.dtype not in _FLOATS,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _refuses_attention(site: Site) -> str:
    """Why standard `Attention` on [B,S,H*D] does not compute a site; empty if it does."""
    spec = site.spec
    reasons = {
        "it does not update a cache by lengths": bool(spec.cache),
        "it has no window": bool(spec.window),
        "the numbers of heads or their sizes are not known": not site.heads_are_known,
        "the query's batch or count is not known": None in site.query,
        f"it is slower in {_name(site.dtype)}": site.dtype != ir.DataType.FLOAT,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _divides(step: int, size: int | str | None) -> bool:
    return isinstance(size, int) and size % step == 0


def _name(dtype: ir.DataType | None) -> str:
    return "unknown" if dtype is None else dtype.name.lower()


class Kernels:
    """Writes kernels into one graph; what sites share is made once.

    Args:
        model: The model whose main graph is changed.
    """

    def __init__(self, model: ir.Model):
        self._model = model
        self._graph = model.graph
        self._writer = NodeWriter(model)
        self._rows = RowForm(model.graph, self._writer)
        self._made: dict[tuple[object, ...], list[ir.Value]] = {}

    def refuses_attention(self, site: Site) -> str:
        """Why standard `Attention` on [B,S,H*D] is not for a site; empty if it is."""
        operands = (site.inputs[name] for name in ("query", "key", "value"))
        natural = all(self._rows.is_natural(value) for value in operands)
        return _refuses_attention(site) or ("" if natural else "no transposition to leave out")

    def write_attention(self, site: Site) -> ir.Node:
        """Replace a site by standard `Attention`."""
        spec = site.spec
        rows = self._operands(site)
        inputs: list[ir.Value | None] = [*rows, site.inputs.get("mask")]
        if spec.lengths or spec.causal:
            # Equal counts need no lengths to be right, but the kernel is slower without them.
            inputs += [None, None, self._valid(site, rows)]
        attributes = {
            "is_causal": int(spec.causal),
            "scale": spec.scale,
            "softcap": spec.softcap,
            "softmax_precision": int(ir.DataType.FLOAT),
            "q_num_heads": site.query[1],
            "kv_num_heads": site.key[1],
        }
        return self._replace(site, ir.node("Attention", _trimmed(inputs), attributes))

    def write_grouped(self, site: Site) -> ir.Node:
        """Replace a site by `GroupQueryAttention`."""
        self._model.opset_imports[_CONTRIB] = self._graph.opset_imports[_CONTRIB] = 1
        rows = self._operands(site)
        node = self._grouped(site, rows)
        if site.spec.int8:
            node = one_or_several(site, self._is_one(site, rows), node, rows, self._writer)
        return self._replace(site, node)

    def _grouped(self, site: Site, rows: list[ir.Value]) -> ir.Node:
        spec = site.spec
        pasts = [site.inputs.get("past_key"), site.inputs.get("past_value")]
        last, total, new = self._counts(site, rows)
        attributes = {
            "num_heads": site.query[1],
            "kv_num_heads": site.key[1],
            "scale": spec.scale,
            "softcap": spec.softcap,
            "local_window_size": spec.window or -1,
        }
        inputs: list[ir.Value | None] = [*rows, *pasts, last, total]
        if spec.int8:
            inputs += [None] * (_SCALES - len(inputs))
            inputs += [self._channel_scales(site, part) for part in ("key", "value")]
            attributes |= {"k_quant_type": _BY_CHANNEL, "v_quant_type": _BY_CHANNEL}
            attributes["kv_cache_bit_width"] = 8
        if spec.cache:
            inputs += [None] * (_QUERY_SEQLENS - len(inputs)) + [new]
        return ir.node("GroupQueryAttention", inputs, attributes, domain=_CONTRIB, num_outputs=3)

    def _is_one(self, site: Site, rows: list[ir.Value]) -> ir.Value:
        """Whether there is one new token, bool []."""
        key = ("one", *self._same(site))
        if key not in self._made:
            new = self._new(site, rows)
            alone = self._add(site, "alone", "Equal", [new, self._constant(1)])
            self._made[key] = [self._add(site, "one", "Squeeze", [alone])]
        return self._made[key][0]

    def _channel_scales(self, site: Site, part: str) -> ir.Value:
        """The scale of each head [Hkv] for each of its channels [Hkv,D]: the kernel has no other.

        The runtime folds this when it opens the graph.
        """
        heads, dim = _whole(site.key[1]), _whole(site.key[3])
        axis, shape = self._constant(1), self._constant(heads, dim)
        column = self._add(site, f"{part}_steps", "Unsqueeze", [site.inputs[f"{part}_scale"], axis])
        return self._add(site, f"{part}_steps_all", "Expand", [column, shape])

    def _operands(self, site: Site) -> list[ir.Value]:
        """Query, key and value as [B,S,H*D]: the `rows` of the methods below."""
        sizes = {"query": site.query, "key": site.key, "value": site.value}
        return [
            self._rows.of(site.inputs[name], _whole(dims[1]), _whole(dims[3]), before=site.node)
            for name, dims in sizes.items()
        ]

    def _replace(self, site: Site, node: ir.Node) -> ir.Node:
        old = site.node
        node.name = old.name
        rows, presents = node.outputs[0], list(node.outputs[1:])
        rows.name = self._writer.name(f"{site.name}_rows")
        rows.type = site.inputs["query"].type
        self._graph.insert_before(old, node)
        for made, was in zip(presents, old.outputs[1:], strict=False):
            name = str(was.name)
            was.name, made.name = self._writer.name(f"{name}_unlowered"), name
            made.type, made.shape = was.type, was.shape
            ir.convenience.replace_all_uses_with(was, made, replace_graph_outputs=True)
        for spare in presents[len(old.outputs) - 1 :]:
            spare.name = ""
        heads, dim = _whole(site.query[1]), _whole(site.value[3])
        self._rows.give(rows, old.outputs[0], heads, dim, after=node)
        self._graph.remove(old, safe=True)
        return node

    def _counts(self, site: Site, rows: list[ir.Value]) -> list[ir.Value]:
        """int32: index of each row's last key [B], most keys of any row [], new keys [B].

        For a fixed buffer the second is its size: rows that do not fit are an error then, where the
        kernel would give a larger buffer.
        """
        key = ("counts", *self._same(site))
        if key not in self._made:
            valid, new = self._valid(site, rows), self._new(site, rows)
            batch = self._size(site, rows[0], 0)
            last = self._add(site, "last", "Sub", [valid, self._constant(1)])
            most = self._most(site, valid)
            each = self._add(site, "each", "Expand", [new, batch])
            self._made[key] = [
                self._add(site, f"{label}_int32", "Cast", [value], to=_INT32)
                for label, value in (("last", last), ("most", most), ("each", each))
            ]
        return self._made[key]

    def _most(self, site: Site, valid: ir.Value) -> ir.Value:
        if site.spec.cache != "static":
            return self._add(site, "most", "ReduceMax", [valid], keepdims=0)
        past = site.inputs["past_key"]
        size = past.shape[2] if past.shape is not None else None
        held = self._constant(size) if isinstance(size, int) else self._size(site, past, 2)
        return self._add(site, "room", "Squeeze", [held])

    def _valid(self, site: Site, rows: list[ir.Value]) -> ir.Value:
        """Valid keys of each row, new ones included, int64 [B]."""
        if site.spec.lengths:
            return site.inputs["lengths"]
        key = ("valid", *self._same(site))
        if key not in self._made:
            count = self._size(site, rows[1], 1)
            if site.spec.cache:
                held = self._size(site, site.inputs["past_key"], 2)
                count = self._add(site, "count", "Add", [held, count])
            batch = self._size(site, rows[0], 0)
            self._made[key] = [self._add(site, "valid", "Expand", [count, batch])]
        return self._made[key][0]

    def _new(self, site: Site, rows: list[ir.Value]) -> ir.Value:
        """Number of new keys, int64 [1]."""
        key = ("new", *self._same(site))
        if key not in self._made:
            self._made[key] = [self._size(site, rows[1], 1)]
        return self._made[key][0]

    def _same(self, site: Site) -> tuple[object, ...]:
        """What two sites must have in common to share counts."""
        past = site.inputs.get("past_key")
        held = None if past is None or past.shape is None else past.shape[2]
        sizes = (site.query[0], site.query[2], site.key[2])
        known = None not in sizes and (past is None or held is not None)
        return (site.inputs.get("lengths"), *sizes, held) if known else (site.node,)

    def _size(self, site: Site, value: ir.Value, axis: int) -> ir.Value:
        """int64 [1]; of [B,S,H*D] operands, so that nothing holds on to [B,H,S,D]."""
        return self._add(site, f"size_{axis}", "Shape", [value], start=axis, end=axis + 1)

    def _add(
        self, site: Site, wish: str, op: str, inputs: list[ir.Value], **attributes: int
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        node.name = node.outputs[0].name = self._writer.name(f"attention_{wish}")
        self._graph.insert_before(site.node, node)
        return node.outputs[0]

    def _constant(self, *numbers: int) -> ir.Value:
        """int64, a vector."""
        key = ("constant", *numbers)
        if key not in self._made:
            tensor = ir.tensor(numbers, ir.DataType.INT64)
            name = "_".join(map(str, ("attention_constant", *numbers)))
            self._made[key] = [self._writer.constant(name, tensor)]
        return self._made[key][0]


def _trimmed(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    while inputs[-1] is None:
        inputs.pop()
    return inputs


def _whole(size: int | str | None) -> int:
    assert isinstance(size, int)
    return size
