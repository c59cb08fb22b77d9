"""The parts that the prefill and the decode kernel share: scores of a tile, online softmax.

Scores are kept in base 2 (multiplied by log2 e), because `exp2` is one instruction. Running maximum
and sum of each query row are carried from tile to tile and the accumulator is rescaled (online
softmax: Milakov and Gimelshein, 2018; FlashAttention-2: Dao, 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["LOG2_E", "hide", "load_tile", "online_softmax", "scale_scores", "tanh"]

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def tanh(x):
    """Hyperbolic tangent by one `exp2`; within 2^-23 of the true value, and +-1 at infinity."""
    return 1.0 - 2.0 / (1.0 + tl.math.exp2(x * (2.0 * LOG2_E)))


@triton.jit
def scale_scores(products, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, LATER: tl.constexpr):
    """Products of queries and keys to scores in base 2.

    Where nothing but the factor is asked for (`LATER`), the product is left alone: the factor then
    joins the subtraction of the maximum in one fused multiply-add.
    """
    if SOFTCAP != 0.0:
        return (SOFTCAP * LOG2_E) * tanh(products * (SCALE / SOFTCAP))
    if LATER:
        return products
    return products * (SCALE * LOG2_E)


@triton.jit
def hide(scores, mask, MASK: tl.constexpr):
    """Apply a tile of the mask input: boolean (True is visible) or additive.

    Args:
        scores: Scores of the tile, in base 2, float32.
        mask: Pointers to the mask of the tile. All can be read: where a tile reaches over the edge
            they point at its last row or column, which costs less than a predicate each.
        MASK: `"bool"` or `"bias"`.

    A lowest-float bias stays finite in base 2, so that a row of nothing else is an average over all
    keys, as in the definition.
    """
    if MASK == "bool":
        visible = tl.load(mask)
        return tl.where(visible != 0, scores, float("-inf"))
    bias = tl.load(mask).to(tl.float32)
    lowered = tl.maximum(bias * LOG2_E, LOWEST)
    return tl.where(bias == float("-inf"), bias, scores + lowered)


@triton.jit
def online_softmax(scores, top, total, FACTOR: tl.constexpr, GUARD: tl.constexpr):
    """Weights of one tile, and the running state after it.

    Args:
        scores: [M, N], in base 2 after multiplication by `FACTOR`; -inf is hidden.
        top: [M], largest scaled score so far.
        total: [M], sum of weights so far, relative to `top`.
        FACTOR: What is still missing from the scores, above 0.
        GUARD: Whether a row may be hidden altogether (then -inf minus -inf must not arise).

    Returns:
        Weights [M, N], the factor [M] by which older sums shrink, and the new top and total.
    """
    new_top = tl.maximum(top, tl.max(scores, 1) * FACTOR)
    origin = new_top
    if GUARD:
        origin = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.math.exp2(scores * FACTOR - origin[:, None])
    shrink = tl.math.exp2(top - origin)
    return weights, shrink, new_top, total * shrink + tl.sum(weights, 1)


@triton.jit
def load_tile(pointers, in_rows, in_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile, with zeros outside; bounds that cannot be crossed are not checked."""
    if ROWS and COLUMNS:
        return tl.load(pointers, mask=in_rows & in_columns, other=0.0)
    if ROWS:
        return tl.load(pointers, mask=in_rows, other=0.0)
    if COLUMNS:
        return tl.load(pointers, mask=in_columns, other=0.0)
    return tl.load(pointers)
