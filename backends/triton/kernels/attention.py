"""Attention without the matrix of scores in memory (Dao 2023, "FlashAttention-2", algorithm 1).

A program has a block of queries of one head, goes through the keys in blocks, and keeps for each query the largest
score so far, the sum of exponentials, and the weighted sum of values, rescaled when the largest grows. Blocks that the
causal rule, the window or the block mask forbid are not read at all. Scores are in powers of 2.

:func:`decoding_kernel` is for few queries and many keys: programs share out the keys, the queries of a group of heads
that share keys are the rows of one product; :func:`combine_kernel` adds their parts.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _step(
    q, k_start, v_start, bias_start, top, total, acc, at_q, at_k, in_d, in_v, length, shift, window, soft_cap, scale,
    k_row, v_row, bias_k, in_q,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, WHOLE: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A block of keys: the new maxima, sums and weighted sums; ``scale`` is of scores in powers of 2.

    With WHOLE all its keys are there and seen.
    """
    in_k = at_k < length
    place = at_k.to(tl.int64)[:, None]
    mask_k, mask_v = in_d[None, :], in_v[None, :]
    if not WHOLE:
        mask_k, mask_v = in_k[:, None] & mask_k, in_k[:, None] & mask_v
    k = tl.load(k_start + place * k_row, mask=mask_k, other=0.0)
    v = tl.load(v_start + place * v_row, mask=mask_v, other=0.0)
    if EXACT:
        k, v = k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if SOFT_CAP:
        # tanh by a sigmoid; in powers of 2 on both sides.
        half = 2.0 * scores / (soft_cap * LOG2_E)
        scores = soft_cap * LOG2_E * (2.0 / (1.0 + tl.exp(-half)) - 1.0)
    seen = in_k[None, :]
    if CAUSAL:
        seen = seen & (at_k[None, :] <= at_q[:, None] + shift)
    if WINDOWED:
        seen = seen & (at_k[None, :] > at_q[:, None] + shift - window)
    if HAS_BIAS:
        given = tl.load(bias_start + at_k[None, :] * bias_k, mask=in_q[:, None] & in_k[None, :], other=0)
        if given.dtype == tl.uint8:
            scores = tl.where(given != 0, scores, float("-inf"))
        else:
            scores += given.to(tl.float32) * LOG2_E
    if not WHOLE:
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # Where nothing was seen yet, the difference of two infinities would be no number.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(scores - base[:, None])
    factor = tl.exp2(top - base)
    total = total * factor + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * factor[:, None], input_precision=PRECISION)
    return new_top, total, acc


@triton.jit
def attention_kernel(
    q, k, v, y, bias, block_mask, lengths_q, lengths_k,
    heads, group, queries, keys, d, d_v, scale, window, soft_cap,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, y_batch, y_head, y_row,
    bias_batch, bias_head, bias_q, bias_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_BLOCKS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """q [batch, heads, queries, d], k and v [batch, heads / group, keys, d and d_v]; y like q.

    bias: added to the scores, or uint8: 0 hides. lengths_q, lengths_k [batch] int32: tokens in use. block_mask uint8
    [queries / BLOCK_M, keys / BLOCK_N]: blocks to read. With CAUSAL the last query sees the last key.
    """
    block, at_head = tl.program_id(0), tl.program_id(1)
    batch, head = (at_head // heads).to(tl.int64), (at_head % heads).to(tl.int64)
    used_q, used_k = queries, keys
    if HAS_LENGTHS:
        used_q, used_k = tl.load(lengths_q + batch), tl.load(lengths_k + batch)
    shift = used_k - used_q
    at_q = block * BLOCK_M + tl.arange(0, BLOCK_M)
    at_d, at_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    in_q, in_d, in_v = at_q < used_q, at_d < d, at_v < d_v
    row = at_q.to(tl.int64)[:, None]
    mine = tl.load(q + batch * q_batch + head * q_head + row * q_row + at_d[None, :],
                   mask=in_q[:, None] & in_d[None, :], other=0.0)  # fmt: skip
    if EXACT:
        mine = mine.to(tl.float32)
    shared = head // group
    k_start = k + batch * k_batch + shared * k_head + at_d[None, :]
    v_start = v + batch * v_batch + shared * v_head + at_v[None, :]
    bias_start = bias + batch * bias_batch + head * bias_head + row * bias_q
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    first, last = 0, used_k
    if CAUSAL:
        last = tl.minimum(used_k, (block + 1) * BLOCK_M + shift)
    if WINDOWED:
        first = tl.maximum(0, block * BLOCK_M + shift - window + 1) // BLOCK_N * BLOCK_N
    factor = scale * LOG2_E
    # Blocks before the diagonal and within the window need no comparison of places.
    middle, clear = first, first
    if not HAS_BLOCKS:
        clear = last // BLOCK_N * BLOCK_N
        if CAUSAL:
            clear = tl.maximum(tl.minimum(clear, (block * BLOCK_M + shift + 1) // BLOCK_N * BLOCK_N), first)
        if WINDOWED:
            middle = tl.minimum(clear, tl.maximum(first, (block + 1) * BLOCK_M + shift - window + BLOCK_N))
            middle = middle // BLOCK_N * BLOCK_N
            for start in range(first, middle, BLOCK_N):
                top, total, acc = _step(
                    mine, k_start, v_start, bias_start, top, total, acc, at_q, start + tl.arange(0, BLOCK_N), in_d,
                    in_v, used_k, shift, window, soft_cap, factor, k_row, v_row, bias_k, in_q, CAUSAL, WINDOWED,
                    False, HAS_BIAS, SOFT_CAP, PRECISION, EXACT,
                )  # fmt: skip
        for start in range(middle, clear, BLOCK_N):
            top, total, acc = _step(
                mine, k_start, v_start, bias_start, top, total, acc, at_q, start + tl.arange(0, BLOCK_N), in_d, in_v,
                used_k, shift, window, soft_cap, factor, k_row, v_row, bias_k, in_q, False, False, True, HAS_BIAS,
                SOFT_CAP, PRECISION, EXACT,
            )  # fmt: skip
        for start in range(clear, last, BLOCK_N):
            top, total, acc = _step(
                mine, k_start, v_start, bias_start, top, total, acc, at_q, start + tl.arange(0, BLOCK_N), in_d, in_v,
                used_k, shift, window, soft_cap, factor, k_row, v_row, bias_k, in_q, CAUSAL, WINDOWED, False,
                HAS_BIAS, SOFT_CAP, PRECISION, EXACT,
            )  # fmt: skip
    else:
        blocks = tl.cdiv(keys, BLOCK_N)
        for start in range(first, last, BLOCK_N):
            if tl.load(block_mask + block * blocks + start // BLOCK_N) != 0:
                top, total, acc = _step(
                    mine, k_start, v_start, bias_start, top, total, acc, at_q, start + tl.arange(0, BLOCK_N), in_d,
                    in_v, used_k, shift, window, soft_cap, factor, k_row, v_row, bias_k, in_q, CAUSAL, WINDOWED,
                    False, HAS_BIAS, SOFT_CAP, PRECISION, EXACT,
                )  # fmt: skip
    # A query that sees nothing, or is none, has the value 0.
    acc = tl.where(in_q[:, None], acc / tl.where(total == 0.0, 1.0, total)[:, None], 0.0)
    target = y + batch * y_batch + head * y_head + row * y_row + at_v[None, :]
    tl.store(target, acc.to(y.dtype.element_ty), mask=(at_q < queries)[:, None] & in_v[None, :])


@triton.jit
def decoding_kernel(
    q, k, v, parts, sums, bias, lengths, k_scales, v_scales,
    shared, group, queries, keys, d, d_v, scale, window, soft_cap,
    k_batch, k_head, k_row, v_batch, v_head, v_row, bias_batch, bias_head, bias_q, bias_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, SPLITS: tl.constexpr,
    WINDOWED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, SOFT_CAP: tl.constexpr,
    INTEGERS: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A part of the keys for all queries of a group of heads, causal, each query's last key at its own place.

    q [batch, shared, group queries, d] dense, a query's heads apart; k, v [batch, shared, keys, ..], int8 with INTEGERS
    and scales [batch, shared, keys]; parts [batch, shared, SPLITS, group queries, d_v], sums [.., 2] float32: largest
    score and sum of exponentials.
    """
    part, at_head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (at_head // shared).to(tl.int64), (at_head % shared).to(tl.int64)
    used = keys
    if HAS_LENGTHS:
        used = tl.load(lengths + batch)
    rows = group * queries
    at_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = at_m < rows
    at_q = at_m % queries
    at_d, at_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    in_d, in_v = at_d < d, at_v < d_v
    at_rows = at_head.to(tl.int64) * rows + at_m
    mine = tl.load(q + at_rows[:, None] * d + at_d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0)
    if EXACT:
        mine = mine.to(tl.float32)
    # A head of the bias is one of the queries' heads.
    of_head = head * group + at_m // queries
    bias_start = bias + batch * bias_batch + (of_head * bias_head + at_q * bias_q)[:, None]
    k_start = k + batch * k_batch + head * k_head + at_d[None, :]
    v_start = v + batch * v_batch + head * v_head + at_v[None, :]
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    shift = used - queries
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, used - queries - window + 1) // BLOCK_N * BLOCK_N
    each = tl.cdiv(tl.cdiv(used - begin, BLOCK_N), SPLITS) * BLOCK_N
    first = begin + part * each
    last = tl.minimum(used, first + each)
    factor = scale * LOG2_E
    scale_start = at_head.to(tl.int64) * keys
    for start in range(first, last, BLOCK_N):
        at_k = start + tl.arange(0, BLOCK_N)
        in_k = at_k < used
        place = at_k.to(tl.int64)[:, None]
        tile_k = tl.load(k_start + place * k_row, mask=in_k[:, None] & in_d[None, :], other=0)
        tile_v = tl.load(v_start + place * v_row, mask=in_k[:, None] & in_v[None, :], other=0)
        if INTEGERS:
            tile_k, tile_v = tile_k.to(mine.dtype), tile_v.to(mine.dtype)
        if EXACT:
            tile_k, tile_v = tile_k.to(tl.float32), tile_v.to(tl.float32)
        scores = tl.dot(mine, tl.trans(tile_k), input_precision=PRECISION) * factor
        if INTEGERS:
            scores *= tl.load(k_scales + scale_start + at_k, mask=in_k, other=0.0).to(tl.float32)[None, :]
        if SOFT_CAP:
            half = 2.0 * scores / (soft_cap * LOG2_E)
            scores = soft_cap * LOG2_E * (2.0 / (1.0 + tl.exp(-half)) - 1.0)
        seen = in_k[None, :] & (at_k[None, :] <= at_q[:, None] + shift)
        if WINDOWED:
            seen = seen & (at_k[None, :] > at_q[:, None] + shift - window)
        if HAS_BIAS:
            given = tl.load(bias_start + at_k[None, :] * bias_k, mask=in_m[:, None] & in_k[None, :], other=0)
            if given.dtype == tl.uint8:
                seen = seen & (given != 0)
            else:
                scores += given.to(tl.float32) * LOG2_E
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(scores - base[:, None])
        grown = tl.exp2(top - base)
        total = total * grown + tl.sum(p, 1)
        if INTEGERS:
            p *= tl.load(v_scales + scale_start + at_k, mask=in_k, other=0.0).to(tl.float32)[None, :]
        acc = tl.dot(p.to(tile_v.dtype), tile_v, acc * grown[:, None], input_precision=PRECISION)
        top = new_top
    out = (at_head.to(tl.int64) * SPLITS + part) * rows + at_m
    tl.store(parts + out[:, None] * d_v + at_v[None, :], acc, mask=in_m[:, None] & in_v[None, :])
    tl.store(sums + 2 * out, top, mask=in_m)
    tl.store(sums + 2 * out + 1, total, mask=in_m)


@triton.jit
def combine_kernel(parts, sums, y, rows, d_v, SPLITS: tl.constexpr, BLOCK_V: tl.constexpr):
    """Add the parts of :func:`decoding_kernel` for a row: y [batch shared, rows, d_v]."""
    row, at_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at_v, at_s = tl.arange(0, BLOCK_V), tl.arange(0, SPLITS)
    place = (at_head * SPLITS + at_s) * rows + row
    top = tl.load(sums + 2 * place)
    total = tl.load(sums + 2 * place + 1)
    largest = tl.max(top, 0)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    factor = tl.exp2(top - base)
    value = tl.load(parts + place[:, None] * d_v + at_v[None, :], mask=(at_v < d_v)[None, :], other=0.0)
    whole = tl.sum(total * factor, 0)
    result = tl.sum(value * factor[:, None], 0) / tl.where(whole == 0.0, 1.0, whole)
    tl.store(y + (at_head * rows + row) * d_v + at_v, result.to(y.dtype.element_ty), mask=at_v < d_v)


KERNELS: dict[str, Any] = {"attention": attention_kernel, "decoding": decoding_kernel, "combine": combine_kernel}
"""The kernels by name."""
