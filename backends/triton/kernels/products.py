"""Products of few rows by weights with the pattern 2:4, in 16 or 32 bits and in 4.

Both are bound by the bytes of the weights when rows are few. Weights are expanded in registers, never in memory; with
few rows the work of the tensor cores on zeros is free. Activations come in four planes, one for each place of a quad,
so that the four parts of an expanded tile meet the four planes in four small products.

``EXACT`` multiplies in float32: Triton's interpreter has no products in bfloat16.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def sparse24_kernel(  # type: ignore[no-untyped-def]
    x, values, places, bias, y,
    rows, n, quads, words,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr, SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``y = x Wᵀ + bias``: x [4, rows, quads] planes, values [2, n, quads], places [n, words]; y [SPLITS, rows, n]."""
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    in_n, in_m = at_n < n, at_m < rows
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    each = tl.cdiv(tl.cdiv(quads, BLOCK_Q), SPLITS)
    plane = rows * quads
    for step in range(part * each, (part + 1) * each):
        at_q = step * BLOCK_Q + tl.arange(0, BLOCK_Q)
        in_q = at_q < quads
        tile = in_n[:, None] & in_q[None, :]
        offset = at_n[:, None].to(tl.int64) * quads + at_q[None, :]
        # Chosen in float32, which is exact, and which the interpreter can do, unlike bfloat16.
        first = tl.load(values + offset, mask=tile, other=0.0).to(tl.float32)
        second = tl.load(values + tl.cast(n, tl.int64) * quads + offset, mask=tile, other=0.0).to(tl.float32)
        word = tl.load(places + at_n[:, None].to(tl.int64) * words + (at_q // 8)[None, :], mask=tile, other=0)
        nibble = (word >> (4 * (at_q % 8))[None, :]) & 15
        where_first, where_second = nibble & 3, nibble >> 2
        inside = in_m[:, None] & in_q[None, :]
        for place in tl.static_range(4):
            weight = tl.where(where_first == place, first, 0.0) + tl.where(where_second == place, second, 0.0)
            given = tl.load(x + place * plane + at_m[:, None] * quads + at_q[None, :], mask=inside, other=0.0)
            if EXACT:
                given = given.to(tl.float32)
            acc = tl.dot(given, tl.trans(weight.to(given.dtype)), acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias + at_n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    target = y + part.to(tl.int64) * rows * n + at_m[:, None].to(tl.int64) * n + at_n[None, :]
    tl.store(target, acc.to(y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def sparse24_w4_kernel(  # type: ignore[no-untyped-def]
    x, codes, places, scales, bias, y,
    rows, n, quads, words, groups,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr, SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """As :func:`sparse24_kernel`, codes [n, quads] of one byte a quad, scales [n, groups]; a tile is a group wide."""
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    in_n, in_m = at_n < n, at_m < rows
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    each = tl.cdiv(groups, SPLITS)
    plane = rows * quads
    for group in range(part * each, tl.minimum((part + 1) * each, groups)):
        at_q = group * BLOCK_Q + tl.arange(0, BLOCK_Q)
        tile = in_n[:, None] & (at_q < quads)[None, :]
        byte = tl.load(codes + at_n[:, None].to(tl.int64) * quads + at_q[None, :], mask=tile, other=0x88).to(tl.int32)
        word = tl.load(places + at_n[:, None].to(tl.int64) * words + (at_q // 8)[None, :], mask=tile, other=0)
        scale = tl.load(scales + at_n.to(tl.int64) * groups + group, mask=in_n, other=0.0).to(tl.float32)
        nibble = (word >> (4 * (at_q % 8))[None, :]) & 15
        where_first, where_second = nibble & 3, nibble >> 2
        first = ((byte & 15) - 8).to(tl.float32)
        second = ((byte >> 4) - 8).to(tl.float32)
        inside = in_m[:, None] & (at_q < quads)[None, :]
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for place in tl.static_range(4):
            weight = tl.where(where_first == place, first, 0.0) + tl.where(where_second == place, second, 0.0)
            given = tl.load(x + place * plane + at_m[:, None] * quads + at_q[None, :], mask=inside, other=0.0)
            if EXACT:
                given = given.to(tl.float32)
            total = tl.dot(given, tl.trans(weight.to(given.dtype)), total, input_precision=PRECISION)
        # Codes are whole numbers, exact in any type: the scale comes once for the whole group.
        acc += total * scale[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + at_n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    target = y + part.to(tl.int64) * rows * n + at_m[:, None].to(tl.int64) * n + at_n[None, :]
    tl.store(target, acc.to(y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


KERNELS: dict[str, Any] = {"sparse24": sparse24_kernel, "sparse24_w4": sparse24_w4_kernel}
"""The kernels by name."""
