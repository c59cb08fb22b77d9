"""Llama-like decoders with random weights, whose attention is written in one of several ways.

Every way computes the same from the same inputs: `input_ids`, `cache_lengths` and one pair of
caches per layer, to the logits after the last token and the updated caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from attention_ways import CONTRIB, Ops, Site, Size, Way

from optc.ir.interface import LENGTHS, LOGITS, TOKENS, past_name, present_name
from optc.targets.ort import Ort

__all__ = ["decoder"]

POSITIONS = 8192


def decoder(size: Size, way: Way) -> ir.Model:
    """The whole graph, weights included."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24, CONTRIB: 1}, name="decoder")
    model, op = ir.Model(graph, ir_version=11), Ops(graph)
    tokens = _input(graph, TOKENS, ir.DataType.INT64, ["batch", "sequence"])
    lengths = _input(graph, LENGTHS, ir.DataType.INT64, ["batch"])
    x = op("Gather", op.weight("embedding", size.vocabulary, size.width), tokens)
    shared = _shared(op, size, tokens, lengths)
    presents = []
    for index in range(size.layers):
        past = tuple(_past(graph, size, index, part) for part in ("key", "value"))
        qkv = _projections(op, size, _norm(op, size, x), index, packed=way.packed)
        site = Site(op, model, size, qkv, past, shared, index)
        output, *both = way.attend(site)
        presents += zip((present_name(index, p) for p in ("key", "value")), both, strict=True)
        x = op("Add", x, op("MatMul", output, op.weight(f"o{index}", size.width, size.width)))
        x = op("Add", x, _feed_forward(op, size, _norm(op, size, x), index))
    last = op("Gather", _norm(op, size, x), op("Constant", value_int=-1), axis=1)
    logits = op("MatMul", last, op.weight("head", size.width, size.vocabulary))
    _output(graph, logits, LOGITS)
    for name, value in presents:
        _output(graph, value, name)
    return Ort().lower(model) if way.lowered else model


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[Any]) -> ir.Value:
    value = ir.val(name, dtype, shape)
    graph.inputs.append(value)
    return value


def _past(graph: ir.Graph, size: Size, index: int, part: str) -> ir.Value:
    shape = ["batch", size.kv_heads, "past", size.dim]
    return _input(graph, past_name(index, part), ir.DataType.FLOAT, shape)


def _output(graph: ir.Graph, value: ir.Value, name: str) -> None:
    value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(value)


def _norm(op: Ops, size: Size, x: ir.Value) -> ir.Value:
    name = "ones"
    ones = op.graph.initializers.get(name)
    if ones is None:
        ones = op.constant(name, np.ones(size.width, np.float32))
    return op("RMSNormalization", x, ones)


def _projections(
    op: Ops, size: Size, x: ir.Value, index: int, *, packed: bool
) -> tuple[ir.Value, ...]:
    wide, narrow = size.width, size.kv_heads * size.dim
    names = [(f"q{index}", wide), (f"k{index}", narrow), (f"v{index}", narrow)]
    weights = [op.weight(name, wide, columns) for name, columns in names]
    if not packed:
        return tuple(op("MatMul", x, weight) for weight in weights)
    arrays = [weight.const_value.numpy() for weight in weights]
    for weight in weights:
        del op.graph.initializers[weight.name]
    return (op("MatMul", x, op.constant(f"qkv{index}", np.concatenate(arrays, axis=1))),)


def _feed_forward(op: Ops, size: Size, x: ir.Value, index: int) -> ir.Value:
    gate = op("MatMul", x, op.weight(f"gate{index}", size.width, size.hidden))
    up = op("MatMul", x, op.weight(f"up{index}", size.width, size.hidden))
    inner = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
    return op("MatMul", inner, op.weight(f"down{index}", size.hidden, size.width))


def _shared(op: Ops, size: Size, tokens: ir.Value, lengths: ir.Value) -> dict[str, ir.Value]:
    """What layers share: rotary tables, counts in several types, a causal mask [1,1,S,T]."""
    angles = np.outer(np.arange(POSITIONS), 10000.0 ** (-np.arange(0, size.dim, 2) / size.dim))
    cos = op.constant("cos_table", np.cos(angles).astype(np.float32))
    sin = op.constant("sin_table", np.sin(angles).astype(np.float32))
    new = op("Shape", tokens, start=1, end=2)
    zero, one = op("Constant", value_int=0), op("Constant", value_int=1)
    steps = op("Range", zero, op("Squeeze", new), one)
    places = op("Add", op("Unsqueeze", lengths, op.ints(1)), steps)
    valid = op("Add", lengths, new)
    valid.name, valid.type, valid.shape = "valid", lengths.type, lengths.shape
    int32 = int(ir.DataType.INT32)
    most = op("ReduceMax", valid, keepdims=0)
    columns = op("Range", zero, most, one)
    hidden = op("Greater", columns, op("Unsqueeze", places, op.ints(1, 3)))
    minus = op("Constant", value_float=float(np.finfo(np.float32).min))
    return {
        "cos_table": cos,
        "sin_table": sin,
        "cos": op("Gather", cos, places),
        "sin": op("Gather", sin, places),
        "lengths": lengths,
        "valid": valid,
        "last": op("Cast", op("Sub", valid, one), to=int32),
        "total": op("Cast", most, to=int32),
        "news": op("Cast", op("Expand", new, op("Shape", lengths)), to=int32),
        "bias": op("Where", hidden, minus, op("Constant", value_float=0.0)),
    }
