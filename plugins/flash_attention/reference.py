"""`optc::FlashAttention` in float64 numpy: what every realisation of the op is tested against.

Written for reading, not for speed: one row and one head at a time, no tiling, no online softmax.
The semantics are those of `optc.ir.flash_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec

__all__ = ["attend", "flash_attention", "round_off", "update_cache"]

_PARTS = ("key", "value")


def flash_attention(spec: AttentionSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Compute the op.

    Args:
        spec: Attributes of the site.
        inputs: Arrays by the names of the op's inputs, those that `spec` asks for.

    Returns:
        `output` [B,Hq,S,Dv] in float64; with a cache also `present_key` and `present_value` as
        float64, where keys past a row's length are unspecified.
    """
    key, value = _new_integers(inputs) if spec.int8 else (inputs["key"], inputs["value"])
    lengths = _lengths(spec, inputs)
    presents = {}
    if spec.cache:
        key = update_cache(spec.cache, inputs["past_key"], key, lengths)
        value = update_cache(spec.cache, inputs["past_value"], value, lengths)
        presents = {"present_key": key, "present_value": value}
    if spec.int8:
        key, value = (
            x * _by_head(inputs, part) for x, part in zip((key, value), _PARTS, strict=True)
        )
    output = attend(spec, inputs["query"], key, value, lengths, inputs.get("mask"))
    return {"output": output, **presents}


def _new_integers(inputs: Mapping[str, Array]) -> tuple[Array, Array]:
    """New keys and values as an int8 cache holds them; the division is in float32."""
    counts = (inputs[part].astype(np.float32) / _by_head(inputs, part) for part in _PARTS)
    key, value = (np.clip(np.rint(count), -128, 127) for count in counts)
    return key, value


def _by_head(inputs: Mapping[str, Array], part: str) -> Array:
    """Scales [Hkv] beside [B,Hkv,T,D]; 1 where there are none."""
    scales = inputs.get(f"{part}_scale", np.ones(1, np.float32))
    return scales[:, None, None]


def _lengths(spec: AttentionSpec, inputs: Mapping[str, Array]) -> Array:
    if spec.lengths:
        return inputs["lengths"]
    past = inputs["past_key"].shape[2] if spec.cache else 0
    return np.full(inputs["query"].shape[0], past + inputs["key"].shape[2])


def update_cache(layout: str, past: Array, new: Array, lengths: Array) -> Array:
    """Put the new keys (or values) of row b at `lengths[b] - S'`.

    Args:
        layout: `static` writes into a buffer of the past's size, `concat` into one of that size
            or `max(lengths)`, whichever is more.
        past: [B,Hkv,P,D].
        new: [B,Hkv,S',D].
        lengths: [B], valid keys of each row, the new ones included.
    """
    batch, heads, _, dim = past.shape
    held = past.shape[2]
    tokens = held if layout == "static" else max(held, int(lengths.max()))
    present = np.zeros((batch, heads, tokens, dim))
    present[:, :, :held] = past
    for row, length in enumerate(lengths):
        present[row, :, length - new.shape[2] : length] = new[row]
    return present


def attend(
    spec: AttentionSpec,
    query: Array,
    key: Array,
    value: Array,
    lengths: Array,
    mask: Array | None = None,
) -> Array:
    """Attention over keys and values that are already in place.

    Args:
        spec: Attributes of the site.
        query: [B,Hq,S,D].
        key: [B,Hkv,T,D].
        value: [B,Hkv,T,Dv].
        lengths: [B], valid keys of each row.
        mask: [B|1,Hq|1,S,T], boolean (True is visible) or additive.

    Returns:
        [B,Hq,S,Dv] in float64.
    """
    batch, heads, rows, _ = query.shape
    group = heads // key.shape[1]
    if mask is not None:
        mask = np.broadcast_to(mask, (batch, heads, rows, key.shape[2]))
    output = np.zeros((batch, heads, rows, value.shape[3]))
    for b in range(batch):
        visible = _visible(spec, rows, key.shape[2], int(lengths[b]))
        for h in range(heads):
            scores = _scores(spec, query[b, h], key[b, h // group])
            here = None if mask is None else mask[b, h]
            output[b, h] = _softmax(scores, visible, here) @ value[b, h // group].astype(float)
    return output


def _visible(spec: AttentionSpec, rows: int, keys: int, length: int) -> Array:
    i, j = np.arange(rows)[:, None], np.arange(keys)[None, :]
    last = i + length - rows
    visible = np.broadcast_to(j < length, (rows, keys))
    if spec.causal:
        visible = visible & (j <= last)
    if spec.window:
        visible = visible & (j > last - spec.window)
    return visible


def _scores(spec: AttentionSpec, query: Array, key: Array) -> Array:
    scores = query.astype(float) @ key.astype(float).T * spec.scale
    if spec.softcap:
        scores = spec.softcap * np.tanh(scores / spec.softcap)
    return np.asarray(scores)


def _softmax(scores: Array, visible: Array, mask: Array | None) -> Array:
    if mask is not None and mask.dtype == bool:
        visible = visible & mask
    elif mask is not None:
        scores = scores + mask.astype(float)
    scores = np.where(visible, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1.0))


def round_off(
    spec: AttentionSpec, inputs: Mapping[str, Array], *, scores: str | None = None
) -> float:
    """Largest error that rounding explains.

    A score is a sum of products, wrong by about the unit round-off times the norms of query and
    key; an error d in the scores moves each weight by a factor of at most exp(2d), and the output
    by that times the largest value. Weights and output are rounded to the inputs' own dtype.

    Args:
        spec: Attributes of the site.
        inputs: Arrays by the names of the op's inputs.
        scores: Dtype in which scores are kept; None: that of the inputs.
    """
    unit = _unit(inputs["query"].dtype)
    query = _largest(np.linalg.norm(inputs["query"].astype(float), axis=-1))
    keys, values = (_of_any_call(inputs, part) for part in _PARTS)
    score = abs(spec.scale) * query * max(_largest(np.linalg.norm(k, axis=-1)) for k in keys)
    score_unit = _unit(scores) if scores else unit
    return 2 * (unit + score_unit * score) * max(_largest(v) for v in values)


def _of_any_call(inputs: Mapping[str, Array], part: str) -> list[Array]:
    """New and old keys (or values), as floats."""
    found = [inputs[part].astype(float)]
    if f"past_{part}" in inputs:
        found.append(inputs[f"past_{part}"].astype(float) * _by_head(inputs, part))
    return found


def _unit(dtype: np.dtype[Any] | str) -> float:
    finfo: Any = ml_dtypes.finfo  # numpy's knows no bfloat16
    return float(finfo(dtype).eps) / 2


def _largest(array: Array) -> float:
    """Largest finite magnitude: what lies behind a row's end may be anything."""
    return float(np.abs(array).max(initial=0.0, where=np.isfinite(array)))
