"""The decode kernels: few query rows over many keys.

One token has too few heads to fill a chip, and its time is that of reading the keys once. So the
query heads that share a key head are packed into the rows of one tile (each key is read once, not
once per head), and the keys are split over several programs (Flash-Decoding: Dao et al., 2023). The
first kernel attends to one split, the second combines the splits by their log-sum-exp.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optc.plugins.flash_attention.softmax import (
    LOG2_E,
    hide,
    load_tile,
    online_softmax,
    scale_scores,
)

__all__ = ["combine_kernel", "split_kernel"]


@triton.jit(do_not_specialize=["rows", "keys"])
def split_kernel(
    query, key, value, lengths, mask, rows, keys, partial, weight,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    MASK: tl.constexpr, MASK_BATCH: tl.constexpr, MASK_HEADS: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of packed query rows to one split of the keys.

    Grid (tiles of packed rows x SPLITS, KV_HEADS, batch). Packed row r of a key head is query
    r % rows of its query head r // rows; in memory these rows are already next to each other.

    Args:
        query: [B, HEADS, rows, DIM], contiguous, as all tensors are.
        key: [B, KV_HEADS, keys, DIM].
        value: [B, KV_HEADS, keys, VALUE_DIM].
        lengths: [B] int32 or int64, valid keys of each row of the batch.
        mask: [B|1, HEADS|1, rows, keys], boolean or additive, or None.
        rows: S.
        keys: T.
        partial: [B, HEADS, rows, SPLITS, VALUE_DIM], what each split alone gives.
        weight: [B, HEADS, rows, SPLITS] float32, base-2 log-sum-exp of each split's scores.

    The rest are compile-time constants: see `op.Site.constants` and `tiles.Tile`.
    """
    LATER: tl.constexpr = SOFTCAP == 0.0 and MASK == "" and SCALE > 0.0
    FACTOR: tl.constexpr = SCALE * LOG2_E if LATER else 1.0
    GROUP: tl.constexpr = HEADS // KV_HEADS
    split, tile = tl.program_id(0) % SPLITS, tl.program_id(0) // SPLITS
    batch = tl.program_id(2).to(tl.int64)
    kv = batch * KV_HEADS + tl.program_id(1)
    packed = kv * GROUP * rows
    r = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    d, v, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_N)
    held = r < GROUP * rows
    row = r % rows
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), keys)
    offset = length - rows
    first, last = _share(split, offset, length, WINDOW, BLOCK_N, SPLITS)
    q = load_tile(query + (packed + r)[:, None] * DIM + d[None, :],
                  held[:, None], (d < DIM)[None, :], True, DIM != BLOCK_D)  # fmt: skip
    key += kv * keys * DIM
    value += kv * keys * VALUE_DIM
    if MASK != "":
        plane = (batch if MASK_BATCH else 0) * (HEADS if MASK_HEADS else 1)
        g = tl.minimum(r // rows, GROUP - 1)
        head = tl.program_id(1) * GROUP + g if MASK_HEADS else tl.zeros_like(r)
        mask_rows = mask + ((plane + head) * rows.to(tl.int64) + row)[:, None] * keys
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in tl.range(first, last, BLOCK_N):
        j = start + n
        k = load_tile(key + start * DIM + n[None, :] * DIM + d[:, None],
                      (j < last)[None, :], (d < DIM)[:, None], True, DIM != BLOCK_D)  # fmt: skip
        scores = tl.dot(q, k, input_precision=PRECISION)
        scores = scale_scores(scores, SCALE, SOFTCAP, LATER)
        if MASK != "":
            scores = hide(scores, mask_rows + tl.minimum(j, keys - 1)[None, :], MASK)
        visible = (j < last)[None, :]
        if CAUSAL:
            visible = visible & (j[None, :] <= row[:, None] + offset)
        if WINDOW > 0:
            visible = visible & (j[None, :] > row[:, None] + (offset - WINDOW))
        scores = tl.where(visible, scores, float("-inf"))
        weights, shrink, top, total = online_softmax(scores, top, total, FACTOR, True)
        w = load_tile(value + start * VALUE_DIM + n[:, None] * VALUE_DIM + v[None, :],
                      (j < last)[:, None], (v < VALUE_DIM)[None, :], True,
                      VALUE_DIM != BLOCK_V)  # fmt: skip
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(w.dtype), w, acc, input_precision=PRECISION)
    out = (packed + r) * SPLITS + split
    total = tl.where(total > 0.0, total, 1.0)  # nothing seen: zeros, of weight 2^-inf
    acc = acc / total[:, None]
    tl.store(partial + out[:, None] * VALUE_DIM + v[None, :], acc.to(partial.dtype.element_ty),
             mask=held[:, None] & (v < VALUE_DIM)[None, :])  # fmt: skip
    tl.store(weight + out, top + tl.math.log2(total), mask=held)


@triton.jit
def _share(split, offset, length, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr,
           SPLITS: tl.constexpr):  # fmt: skip
    """First and last key of one split: whole tiles, as even as they can be."""
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(offset - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    tiles = tl.cdiv(tl.maximum(length - begin, 0), BLOCK_N)
    first = begin + split * tl.cdiv(tiles, SPLITS) * BLOCK_N
    return first, tl.minimum(first + tl.cdiv(tiles, SPLITS) * BLOCK_N, length)


@triton.jit
def combine_kernel(
    partial, weight, output,
    VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Average the splits of one row by their weights; grid (B x HEADS x rows).

    Args:
        partial: [B, HEADS, rows, SPLITS, VALUE_DIM] float32.
        weight: [B, HEADS, rows, SPLITS] float32, base-2 log-sum-exp; -inf where nothing was seen.
        output: [B, HEADS, rows, VALUE_DIM].
        VALUE_DIM: Dv.
        BLOCK_V: Dv, rounded up to a power of two.
        SPLITS: Number of splits.
        BLOCK_S: That, rounded up to a power of two.
    """
    r = tl.program_id(0).to(tl.int64)
    s, v = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_V)
    logs = tl.load(weight + r * SPLITS + s, mask=s < SPLITS, other=float("-inf"))
    top = tl.max(logs, 0)
    share = tl.math.exp2(logs - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(share, 0)
    inside = (s < SPLITS)[:, None] & (v < VALUE_DIM)[None, :]
    parts = tl.load(partial + (r * SPLITS + s)[:, None] * VALUE_DIM + v[None, :],
                    mask=inside, other=0.0)  # fmt: skip
    out = tl.sum(parts * share[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(output + r * VALUE_DIM + v, out.to(output.dtype.element_ty), mask=v < VALUE_DIM)
