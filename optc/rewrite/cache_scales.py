"""Scales of an int8 cache, from the keys and values that calibration data makes.

Integers are symmetric: the scale of a head is the largest magnitude seen in it over 127. Keys are
seen as they are cached, after rotary embedding. A scale for each channel would not hold: rotary
embedding turns slow channels into each other at positions that calibration does not reach
(`docs/decisions/0014-int8-caches.md`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Context
from optc.core.errors import SampleError, UnsupportedError
from optc.ir.flash_attention import flash_attention_nodes
from optc.rewrite.quant_observe import fetch_groups, tokens_of

__all__ = ["CacheScales", "add_scales", "calibrate"]

_MOST = 127
_WHERE = "kv:dtype=int8"


@dataclasses.dataclass(frozen=True)
class CacheScales:
    """What an integer of the cache of one site stands for.

    Attributes:
        key: float32 [Hkv].
        value: float32 [Hkv].
    """

    key: Array
    value: Array


def calibrate(model: ir.Model, ctx: Context) -> dict[str, CacheScales]:
    """The scales of each canonical attention, by the name of its output.

    Args:
        model: The graph, without a cache; not changed.
        ctx: Has the evaluator and the calibration data.

    Raises:
        SampleError: There is no calibration data, or it gives NaN or infinity.
        UnsupportedError: There is no evaluator.
    """
    if ctx.evaluate is None:
        raise UnsupportedError("an int8 cache needs a runtime to calibrate with", where=_WHERE)
    if not ctx.calibration:
        raise SampleError(
            "an int8 cache needs calibration data and there is none",
            where=_WHERE,
            remedy="give --calibration",
        )
    sites = {
        str(node.outputs[0].name): [str(v.name) for v in node.inputs[1:3] if v is not None]
        for node in flash_attention_nodes(model)
    }
    largest = _largest(model, [name for pair in sites.values() for name in pair], ctx)
    return {
        site: CacheScales(_scale(largest[key]), _scale(largest[value]))
        for site, (key, value) in sites.items()
    }


def _largest(model: ir.Model, names: Sequence[str], ctx: Context) -> Mapping[str, Array]:
    """Largest magnitude in each head, [Hkv], over all samples."""
    assert ctx.evaluate is not None
    values = {str(v.name): v for node in model.graph for v in node.outputs}
    sizes = {name: _numbers(values[name]) for name in dict.fromkeys(names)}
    found: dict[str, Array] = {}
    groups = list(fetch_groups(sizes, max(map(tokens_of, ctx.calibration))))
    total = len(groups) * len(ctx.calibration)
    for group in groups:
        for index, got in enumerate(ctx.evaluate(model, ctx.calibration, fetch=group)):
            for name in group:
                seen = np.abs(got[name].astype(np.float32)).max(axis=(0, 2, 3))
                if not np.isfinite(seen).all():
                    problem = f"calibration sample {index} gives NaN or infinity at '{name}'"
                    raise SampleError(problem, remedy="give other calibration data")
                found[name] = np.maximum(found.get(name, seen), seen)
            done = groups.index(group) * len(ctx.calibration) + index + 1
            ctx.progress("observing keys and values", done, total)
    return found


def _numbers(value: ir.Value) -> int:
    """Numbers of one token of [B,Hkv,S,D]."""
    heads, dim = (value.shape[1], value.shape[3]) if value.shape is not None else (1, 1)
    return int(heads) * int(dim) if isinstance(heads, int) and isinstance(dim, int) else 1


def _scale(largest: Array) -> Array:
    """A head that was never anything but 0 has a scale of 1/127."""
    found: Array = (np.where(largest > 0, largest, 1.0) / _MOST).astype(np.float32)
    return found


def add_scales(model: ir.Model, index: int, scales: CacheScales) -> dict[str, ir.Value]:
    """The scales of one site as initializers, by the names of the attention op's inputs."""
    made = {}
    for part, steps in (("key_scale", scales.key), ("value_scale", scales.value)):
        name = f"cache.{index}.{part}"
        tensor = ir.tensor(steps, name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(steps.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=tensor,
        )
        model.graph.register_initializer(value)
        made[part] = value
    return made
