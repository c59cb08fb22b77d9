"""Find the kinds of quantised products in a canonical graph, and write small graphs of each.

A product shares its rounded activation, and maybe a kernel, with others that read the same one (q,
k and v; gate and up), so what is timed is all of them together. Small graphs are quantised by the
code that quantises large ones (`optc.rewrite.quant_apply`), from random weights.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx_ir as ir

from optc.rewrite.quant_apply import apply_plan
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites
from optc.targets.ort_quant_match import Weight, made_by, read_weight, readers
from optc.targets.ort_quant_tokens import rounded_tokens
from optc.targets.speed import Kind

__all__ = ["ACTIVATION", "IDS", "cut", "find_kinds", "float_graph", "quantised_graph"]

ACTIVATION = "x"
"""Input of the small graphs: [tokens, K]."""

IDS = "ids"
"""Input of those whose weight is a table as well: int64 [n]."""

_RANGE = 4.0
_ENOUGH = 256
_OPSET = 24


def find_kinds(model: ir.Model) -> Counter[Kind]:
    """Count the kinds of products with quantised constant matrices in the main graph.

    Args:
        model: A canonical graph, not lowered; not changed.
    """
    alike: dict[tuple[ir.Value, Kind], list[int]] = {}
    for node in model.graph:
        weight = read_weight(node, floats=True)
        products, lookups = ([], []) if weight is None else readers(weight)
        for product in products:
            source = product.inputs[0]
            if weight is None or source is None:
                continue
            kind = Kind(
                weight.inner, (), _grid(weight), _rounding(product), bool(lookups), weight.dtype
            )
            alike.setdefault((source, kind), []).append(weight.outer)
    return Counter(
        dataclasses.replace(kind, outers=tuple(sorted(outers, reverse=True)))
        for (_, kind), outers in alike.items()
    )


def _grid(weight: Weight) -> Grid:
    is_float = weight.tensor.dtype == ir.DataType.FLOAT8E4M3FN
    return Grid(weight.bits, weight.group, weight.zero is None, is_float)


def _rounding(product: ir.Node) -> str:
    """How the first input of a product was rounded."""
    up = made_by(product.inputs[0], "DequantizeLinear")
    if up is not None and made_by(up.inputs[0], "QuantizeLinear") is not None:
        return "tensor"
    return "token" if rounded_tokens(product) else ""


def cut(kind: Kind, elements: int) -> Kind:
    """The same with fewer channels of each product, where its weights hold more than `elements`.

    So many are left that threads have something to share.
    """
    share = max(elements, _ENOUGH * kind.inner) / kind.elements
    if share >= 1:
        return kind
    outers = tuple(max(1, int(outer * share)) for outer in kind.outers)
    return dataclasses.replace(kind, outers=outers)


def float_graph(kind: Kind) -> ir.Model:
    """`x` [tokens, K] times a random matrix [K, N] for each product, in float.

    A tied weight is stored as [N, K], and rows of it are looked up by `ids`.
    """
    rng = np.random.default_rng(0)
    x = _value(ACTIVATION, kind.dtype, ["tokens", kind.inner])
    ids = _value(IDS, ir.DataType.INT64, ["n"])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": _OPSET}, name="products")
    if kind.is_tied:
        graph.inputs.append(ids)
    for number, outer in enumerate(kind.outers):
        shape = (outer, kind.inner) if kind.is_tied else (kind.inner, outer)
        array = rng.standard_normal(shape, np.float32).astype(kind.dtype.numpy())
        name = f"weight_{number}"
        weight = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        weight.type, weight.shape = ir.TensorType(kind.dtype), ir.Shape(shape)
        graph.register_initializer(weight)
        matrix = weight
        if kind.is_tied:
            rows = _add(graph, kind, "Gather", [weight, ids], ["n", kind.inner])
            graph.outputs.append(rows)
            matrix = _add(graph, kind, "Transpose", [weight], [kind.inner, outer], perm=[1, 0])
        graph.outputs.append(_add(graph, kind, "MatMul", [x, matrix], ["tokens", outer]))
    return ir.Model(graph, ir_version=11)


def quantised_graph(kind: Kind) -> ir.Model:
    """The same in standard Q/DQ, as the pass `quant` writes it."""
    model = float_graph(kind)
    sites = find_sites(model).sites
    weights = {str(site.weight.name): kind.grid for site in sites}
    ranges = {ACTIVATION: Fit(_RANGE, is_float=kind.grid.is_float)}
    activations = ranges if kind.rounding == "tensor" else {}
    tokens = frozenset({ACTIVATION} if kind.rounding == "token" else ())
    apply_plan(model, sites, Plan(weights, activations, tokens))
    return model


def _add(
    graph: ir.Graph,
    kind: Kind,
    op: str,
    inputs: list[ir.Value],
    shape: list[int | str],
    **attributes: list[int],
) -> ir.Value:
    node = ir.node(op, inputs, attributes)
    name = f"{op.lower()}_{len(graph)}"
    node.name = node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind.dtype), ir.Shape(shape)
    graph.append(node)
    return node.outputs[0]


def _value(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
