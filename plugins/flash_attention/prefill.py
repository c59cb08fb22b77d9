"""The prefill kernel: many query rows, tiled, with online softmax (FlashAttention-2: Dao, 2023).

One program computes `BLOCK_M` query rows of one head. Its keys fall into three ranges: those cut by
the window, those that every row of the tile sees, and those cut by causality or the row's length.
Only the first and the last pay for comparing positions; tiles outside are never loaded.

Plain loads, no tensor-map descriptors: those need a buffer or an argument from the host, which a
kernel that is embedded in an engine does not get.
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

__all__ = ["prefill_kernel"]


@triton.jit
def _attend_tiles(
    acc, top, total, q, key, value, mask, first, last, m, row, offset, length, rows, keys,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    MASK: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Keys `first` to `last`, a multiple of `BLOCK_N` apart; `EDGE`: some may be hidden.

    `key` and `value` point at key 0 of the right head, `mask` at key 0 of the tile's first query;
    `row` [M] are the positions of the queries, `m` within the tile and not past the last one.
    """
    LATER: tl.constexpr = SOFTCAP == 0.0 and MASK == "" and SCALE > 0.0
    FACTOR: tl.constexpr = SCALE * LOG2_E if LATER else 1.0
    d, v, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_N)
    for start in tl.range(first, last, BLOCK_N):
        j = start + n
        k = load_tile(key + start * DIM + n[None, :] * DIM + d[:, None],
                  (j < length)[None, :], (d < DIM)[:, None], EDGE, DIM != BLOCK_D)  # fmt: skip
        scores = tl.dot(q, k, input_precision=PRECISION)
        scores = scale_scores(scores, SCALE, SOFTCAP, LATER)
        if MASK != "":
            column = tl.minimum(n, keys - 1 - start) if EDGE else n
            scores = hide(scores, mask + start + m[:, None] * keys + column[None, :], MASK)
        if EDGE:
            visible = (j < length)[None, :]
            if CAUSAL:
                visible = visible & (j[None, :] <= row[:, None] + offset)
            if WINDOW > 0:
                visible = visible & (j[None, :] > row[:, None] + (offset - WINDOW))
            scores = tl.where(visible, scores, float("-inf"))
        weights, shrink, top, total = online_softmax(scores, top, total, FACTOR, EDGE or MASK != "")
        w = load_tile(value + start * VALUE_DIM + n[:, None] * VALUE_DIM + v[None, :],
                  (j < length)[:, None], (v < VALUE_DIM)[None, :], EDGE,
                  VALUE_DIM != BLOCK_V)  # fmt: skip
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(w.dtype), w, acc, input_precision=PRECISION)
    return acc, top, total


@triton.jit
def _ranges(tile, offset, length, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Where the keys of a tile of queries begin, are all visible from, to, and end.

    The first three are multiples of `BLOCK_N` or equal to the end of the range before.
    """
    end = length
    full_end = length
    if CAUSAL:
        end = tl.minimum(length, (tile + 1) * BLOCK_M + offset)
        full_end = tl.minimum(length, tile * BLOCK_M + offset + 1)
    end = tl.maximum(end, 0)
    full_end = tl.maximum(full_end, 0) // BLOCK_N * BLOCK_N
    begin, full_begin = 0, 0
    if WINDOW > 0:
        begin = tl.maximum(tile * BLOCK_M + offset - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        full_begin = tl.maximum((tile + 1) * BLOCK_M + offset - WINDOW, 0)
        full_begin = tl.minimum(tl.cdiv(full_begin, BLOCK_N), tl.cdiv(end, BLOCK_N)) * BLOCK_N
        full_end = tl.maximum(full_end, full_begin)
    return begin, full_begin, full_end, end


@triton.jit(do_not_specialize=["rows", "keys"])
def prefill_kernel(
    query, key, value, lengths, mask, rows, keys, output,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    MASK: tl.constexpr, MASK_BATCH: tl.constexpr, MASK_HEADS: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries; grid (tiles of queries, HEADS, batch).

    Args:
        query: [B, HEADS, rows, DIM], contiguous, as all tensors are.
        key: [B, KV_HEADS, keys, DIM].
        value: [B, KV_HEADS, keys, VALUE_DIM].
        lengths: [B] int32 or int64, valid keys of each row of the batch.
        mask: [B|1, HEADS|1, rows, keys], boolean or additive, or None.
        rows: S.
        keys: T.
        output: [B, HEADS, rows, VALUE_DIM].

    The rest are compile-time constants: see `op.Site.constants` and `tiles.Tile`.
    """
    # Causal tiles at the end of the sequence have the most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), keys)
    offset = length - rows
    query += (batch * HEADS + head) * rows * DIM
    output += (batch * HEADS + head) * rows * VALUE_DIM
    kv = batch * KV_HEADS + head // (HEADS // KV_HEADS)
    key += kv * keys * DIM
    value += kv * keys * VALUE_DIM
    if MASK != "":
        plane = (batch if MASK_BATCH else 0) * (HEADS if MASK_HEADS else 1)
        plane = (plane + (head if MASK_HEADS else 0)) * rows.to(tl.int64) + tile * BLOCK_M
        mask += plane * keys
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    m = tl.minimum(row, rows - 1) - tile * BLOCK_M
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = load_tile(query + row[:, None] * DIM + d[None, :],
              (row < rows)[:, None], (d < DIM)[None, :], True, DIM != BLOCK_D)  # fmt: skip
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    begin, full_begin, full_end, end = _ranges(
        tile, offset, length, CAUSAL, WINDOW, BLOCK_M, BLOCK_N
    )
    if WINDOW > 0:
        acc, top, total = _attend_tiles(
            acc, top, total, q, key, value, mask, begin, full_begin, m, row, offset, length, rows,
            keys, SCALE, SOFTCAP, CAUSAL, WINDOW, MASK, DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N,
            PRECISION, True,
        )  # fmt: skip
    acc, top, total = _attend_tiles(
        acc, top, total, q, key, value, mask, full_begin, full_end, m, row, offset, length, rows,
        keys, SCALE, SOFTCAP, CAUSAL, WINDOW, MASK, DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N,
        PRECISION, False,
    )  # fmt: skip
    acc, top, total = _attend_tiles(
        acc, top, total, q, key, value, mask, full_end, end, m, row, offset, length, rows,
        keys, SCALE, SOFTCAP, CAUSAL, WINDOW, MASK, DIM, VALUE_DIM, BLOCK_D, BLOCK_V, BLOCK_N,
        PRECISION, True,
    )  # fmt: skip
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(output + row[:, None] * VALUE_DIM + v[None, :], acc.to(output.dtype.element_ty),
             mask=(row < rows)[:, None] & (v < VALUE_DIM)[None, :])  # fmt: skip
