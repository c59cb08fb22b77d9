"""Operands and results of attention as [B,S,H*D], the form in which products make and take them.

Exporters split heads by `Reshape` to [B,S,H,D] and `Transpose` to [B,H,S,D]; kernels that take
[B,S,H*D] make both superfluous. A rotary embedding in between takes that form too.
"""

from __future__ import annotations

import onnx_ir as ir

from optc.rewrite.quant_nodes import NodeWriter

__all__ = ["RowForm"]

_SWAP = (0, 2, 1, 3)


class RowForm:
    """Reads and writes the form [B,S,H*D] in one graph.

    Args:
        graph: The graph that is changed.
        writer: Gives names.
    """

    def __init__(self, graph: ir.Graph, writer: NodeWriter):
        self._graph = graph
        self._writer = writer
        self._shapes: dict[tuple[int, ...], ir.Value] = {}

    def is_natural(self, value: ir.Value) -> bool:
        """Whether [B,H,S,D] was made from [B,S,H*D], so that going back costs nothing."""
        return _swapped(_before_rotation(value) or value) is not None

    def of(self, value: ir.Value, heads: int, dim: int, *, before: ir.Node) -> ir.Value:
        """[B,H,S,D] as [B,S,H*D]; what is needed is inserted in front of `before`."""
        node, inner = value.producer(), _before_rotation(value)
        if node is not None and inner is not None:
            rows = self.of(inner, heads, dim, before=before)
            attributes = [a for a in node.attributes.values() if a.name != "num_heads"]
            count = ir.AttrInt64("num_heads", heads)
            turned = ir.Node(
                "", "RotaryEmbedding", [rows, *node.inputs[1:]], [*attributes, count], version=None
            )
            return self._insert(turned, f"{value.name}_rows", rows, before)
        apart = _swapped(value)
        if apart is None:
            swap = ir.node("Transpose", [value], {"perm": _SWAP})
            apart = self._insert(swap, f"{value.name}_swapped", value, before, order=_SWAP)
        joined = _unsplit(apart, heads * dim)
        if joined is not None:
            return joined
        target = self._shape(0, 0, heads * dim)
        rows = self._insert(
            ir.node("Reshape", [apart, target]), f"{apart.name}_rows", apart, before
        )
        if apart.shape is not None:
            rows.shape = ir.Shape([*apart.shape[:2], heads * dim])
        return rows

    def give(self, rows: ir.Value, old: ir.Value, heads: int, dim: int, *, after: ir.Node) -> None:
        """Let every user of `old` [B,H,S,D] use `rows` [B,S,H*D], through nodes after `after`."""
        name = str(old.name)
        split = ir.node("Reshape", [rows, self._shape(0, 0, heads, dim)])
        apart = split.outputs[0]
        apart.type = old.type
        if old.shape is not None:
            apart.shape = ir.Shape([old.shape[at] for at in _SWAP])
        split.name = apart.name = self._writer.name(f"{name}_split")
        self._graph.insert_after(after, split)
        for user in [use.node for use in old.uses()]:
            swapped = user.outputs[0]
            if _is_swap(user) and not swapped.is_graph_output():
                self._join(swapped, rows, heads * dim)
                ir.convenience.replace_all_uses_with(swapped, apart)
                self._graph.remove(user, safe=True)
        if not old.uses() and not old.is_graph_output():
            return
        swap = ir.node("Transpose", [apart], {"perm": _SWAP})
        made = swap.outputs[0]
        made.type, made.shape = old.type, old.shape
        swap.name = self._writer.name(f"{name}_heads")
        old.name, made.name = self._writer.name(f"{name}_unlowered"), name
        self._graph.insert_after(split, swap)
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)

    def _join(self, swapped: ir.Value, rows: ir.Value, width: int) -> None:
        """Users that make [B,S,H*D] of [B,S,H,D] get what they would make."""
        for user in [use.node for use in swapped.uses()]:
            joined = user.outputs[0]
            is_output = user.op_type != "Reshape" or joined.is_graph_output()
            if not is_output and _unsplit(swapped, width, joined) is not None:
                rows.shape = joined.shape
                ir.convenience.replace_all_uses_with(joined, rows)

    def _shape(self, *dims: int) -> ir.Value:
        if dims not in self._shapes:
            wish = "shape_" + "_".join(str(dim) for dim in dims)
            self._shapes[dims] = self._writer.constant(wish, ir.tensor(dims, ir.DataType.INT64))
        return self._shapes[dims]

    def _insert(
        self,
        node: ir.Node,
        wish: str,
        like: ir.Value,
        before: ir.Node,
        order: tuple[int, ...] | None = None,
    ) -> ir.Value:
        output = self._writer.insert(node, wish, like, before=before)
        if order is not None and like.shape is not None:
            output.shape = ir.Shape([like.shape[at] for at in order])
        return output


def _is_swap(node: ir.Node | None) -> bool:
    if node is None or node.domain or node.op_type != "Transpose":
        return False
    return tuple(node.attributes["perm"].as_ints() if "perm" in node.attributes else ()) == _SWAP


def _swapped(value: ir.Value) -> ir.Value | None:
    """[B,S,H,D] that `value` [B,H,S,D] was transposed from."""
    node = value.producer()
    return node.inputs[0] if node is not None and _is_swap(node) else None


def _before_rotation(value: ir.Value) -> ir.Value | None:
    """What a rotary embedding that nobody else uses turned, [B,H,S,D]."""
    node = value.producer()
    if node is None or node.domain or node.op_type != "RotaryEmbedding":
        return None
    inner = node.inputs[0]
    if len(value.uses()) != 1 or value.is_graph_output() or inner is None:
        return None
    return inner if inner.shape is not None and len(inner.shape) == 4 else None


def _unsplit(apart: ir.Value, width: int, joined: ir.Value | None = None) -> ir.Value | None:
    """[B,S,H*D] that `apart` [B,S,H,D] was split from (or `joined`, if it is just that)."""
    if joined is None:
        node = apart.producer()
        if node is None or node.domain or node.op_type != "Reshape":
            return None
        joined = node.inputs[0]
    if joined is None or joined.shape is None or apart.shape is None or len(joined.shape) != 3:
        return None
    same = all(
        joined.shape[at] == apart.shape[at] and not _unknown(joined.shape[at]) for at in (0, 1)
    )
    return joined if same and joined.shape[2] == width else None


def _unknown(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and dim.value is None
