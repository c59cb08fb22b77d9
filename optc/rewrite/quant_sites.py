"""Where a graph may be quantised: products with a constant matrix, and lookups in a table.

1. `MatMul(x, W)` with W [K,N] constant, or the `Transpose` of a constant [N,K].
2. `Gemm(x, W, bias)` that is a plain linear layer, either layout of W.
3. `Gather(W, ids)` of rows of a constant table. Tied to a product when both read one constant.

Sites are found by use-def edges. Everything looked at and left alone is reported with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import onnx_ir as ir

from optc.core.base import Refusal

__all__ = ["Site", "Sites", "find_sites", "is_quantised", "weight_groups"]

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
_SMALL_TABLE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One product or lookup with a constant matrix.

    Attributes:
        node: The MatMul, Gemm or Gather.
        weight: The constant, an initializer [C,K] or [K,C].
        axis: Axis of `weight` that counts output channels C (for a lookup: rows of the table).
        activation: What is multiplied, [..., K]; None for a lookup.
    """

    node: ir.Node
    weight: ir.Value
    axis: int
    activation: ir.Value | None

    @property
    def name(self) -> str:
        """Name of the output value."""
        return str(self.node.outputs[0].name)

    @property
    def slot(self) -> int:
        """Which input of the node the matrix is."""
        return 0 if self.activation is None else 1


@dataclasses.dataclass(frozen=True)
class Sites:
    """What `find_sites` found, in graph order."""

    sites: tuple[Site, ...]
    refusals: tuple[Refusal, ...]


def find_sites(model: ir.Model, wants: Callable[[str], bool] = lambda _: True) -> Sites:
    """Find every place of the main graph that may be quantised.

    Args:
        model: The graph; not changed.
        wants: Whether a site, by name, may be touched.
    """
    candidates: list[Site] = []
    refusals: list[Refusal] = []
    for node in model.graph:
        match = _match(node)
        if isinstance(match, Site):
            candidates.append(match)
        elif match:
            refusals.append(Refusal(str(node.outputs[0].name), match))
    tensors = [value.const_value for value in model.graph.initializers.values()]
    total = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    sites: list[Site] = []
    for group in weight_groups(candidates):
        problem = _group_problem(group, total)
        for site in group:
            reason = problem or ("" if wants(site.name) else "the caller left it out")
            if reason:
                refusals.append(Refusal(site.name, reason))
            else:
                sites.append(site)
    order = {str(node.outputs[0].name): index for index, node in enumerate(model.graph)}
    sites.sort(key=lambda s: order[s.name])
    refusals.sort(key=lambda r: order[r.site])
    return Sites(tuple(sites), tuple(refusals))


def weight_groups(sites: Iterable[Site]) -> list[list[Site]]:
    """Sites that share one constant, together: tied tables stay tied."""
    groups: dict[ir.Value, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.weight, []).append(site)
    return list(groups.values())


def _match(node: ir.Node) -> Site | str:
    """The site of `node`, or why it is none, or `""` if it is nothing of the kind."""
    if node.domain or node.op_type not in {"MatMul", "Gemm", "Gather"}:
        return ""
    if node.op_type == "Gather":
        return _match_lookup(node)
    activation, matrix = node.inputs[:2]
    if activation is None or matrix is None:
        return ""
    flipped = False
    if node.op_type == "Gemm":
        if not _is_plain_gemm(node):
            return "a Gemm with scaling, or with a transposed first operand"
        flipped = bool(node.attributes.get_int("transB", 0))
    weight, transposed = _constant(matrix)
    if weight is None:
        return _why_not_constant(node, activation, matrix)
    return Site(node, weight, 0 if transposed != flipped else 1, activation)


def _match_lookup(node: ir.Node) -> Site | str:
    table = node.inputs[0]
    if table is None or node.attributes.get_int("axis", 0) != 0:
        return ""
    if is_quantised(table):
        return "its weight is quantised already"
    weight, transposed = _constant(table)
    if weight is None or _rank(weight) != 2 or weight.dtype not in _FLOATS:
        return ""
    return Site(node, weight, 1 if transposed else 0, None)


def _why_not_constant(node: ir.Node, left: ir.Value, right: ir.Value) -> str:
    if is_quantised(right):
        return "its weight is quantised already"
    if _constant(left)[0] is not None:
        return "its constant matrix is the left operand"
    return "neither operand is a constant matrix"


def _constant(value: ir.Value) -> tuple[ir.Value | None, bool]:
    """The initializer behind `value`, and whether a Transpose lies between."""
    producer = value.producer()
    if producer is None:
        known = value.is_initializer() and value.const_value is not None
        return (None if not known or value.is_graph_input() else value), False
    if producer.op_type != "Transpose" or producer.domain or producer.inputs[0] is None:
        return None, False
    perm = producer.attributes.get("perm")
    if perm is not None and list(perm.as_ints()) != [1, 0]:
        return None, False
    source = producer.inputs[0]
    return (_constant(source)[0] if source.producer() is None else None), True


def is_quantised(value: ir.Value) -> bool:
    """Whether `value` comes out of DequantizeLinear, or of a Transpose after one."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_plain_gemm(node: ir.Node) -> bool:
    scales = [node.attributes[k].as_float() for k in ("alpha", "beta") if k in node.attributes]
    return all(s == 1.0 for s in scales) and not node.attributes.get_int("transA", 0)


def _rank(value: ir.Value) -> int:
    return len(value.const_value.shape) if value.const_value is not None else -1


def _group_problem(group: list[Site], total_bytes: int) -> str:
    """Why the constant of these sites must stay as it is; `""` if it need not."""
    weight = group[0].weight
    tensor = weight.const_value
    if tensor is None or _rank(weight) != 2:
        return f"its constant has {_rank(weight)} axes, not 2"
    if tensor.dtype not in _FLOATS:
        return f"its constant is {tensor.dtype.name}, not FLOAT or FLOAT16"
    if len({site.axis for site in group}) > 1:
        return "its constant is shared by sites that count channels along different axes"
    if other := _foreign_user(group):
        return f"its constant is also used by {other}, which keeps it in float"
    is_lookup_only = all(site.activation is None for site in group)
    if is_lookup_only and tensor.nbytes < _SMALL_TABLE * total_bytes:
        return "its table holds less than 1 % of the weights"
    return ""


def _foreign_user(group: list[Site]) -> str:
    weight = group[0].weight
    known = {site.node for site in group}
    if weight.is_graph_output():
        return "an output of the graph"
    for user, slot in weight.uses():
        readers = [(user, slot)]
        if user.op_type == "Transpose" and not user.domain:
            readers = list(user.outputs[0].uses())
        for node, index in readers:
            is_matrix = any(s.node is node and s.slot == index for s in group)
            if node not in known or not is_matrix:
                return f"'{node.name or node.outputs[0].name}' ({node.op_type})"
    return ""
