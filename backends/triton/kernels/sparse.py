"""Products of few rows by weights with the pattern 2:4, in 16 or 32 bits and in 4.

Both are bound by the bytes of the weights when rows are few. Weights are expanded in registers, never in memory; with
few rows the work of the tensor cores on zeros is free. Activations come in four planes, one for each place of a quad,
so that the four parts of an expanded tile meet the four planes in four small products. Warps share out the columns as
in ``four_bits.py``; ``EXPAND`` is assembly from ``unpacking.py``, without which plain operations do the same.

``EXACT`` multiplies in float32: Triton's interpreter has no products in bfloat16.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .epilogues import finish


@triton.jit
def _place(mask, first, second, PLACE: tl.constexpr):
    """What a quad has at a place: the first of its two values is at the lowest bit of the mask, the second above."""
    here = tl.where((mask & ((1 << PLACE) - 1)) == 0, first, second)
    return tl.where(((mask >> PLACE) & 1) == 1, here, 0.0)


@triton.jit
def _expanded(
    masks, values, second, dtype: tl.constexpr, HALF: tl.constexpr, CODES: tl.constexpr, EXPAND: tl.constexpr
):  # fmt: skip
    """Four planes of a tile: masks of two quads to a byte, values (and second values), or codes of both."""
    if EXPAND != "":
        if CODES:
            if dtype == tl.bfloat16:
                planes = tl.inline_asm_elementwise(
                    EXPAND, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [masks, values],
                    dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
                )  # fmt: skip
            else:
                planes = tl.inline_asm_elementwise(
                    EXPAND, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [masks, values],
                    dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=4,
                )  # fmt: skip
        elif dtype == tl.bfloat16:
            planes = tl.inline_asm_elementwise(
                EXPAND, "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r", [masks, values, second],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            planes = tl.inline_asm_elementwise(
                EXPAND, "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r", [masks, values, second],
                dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=4,
            )  # fmt: skip
        p0, p1, p2, p3 = planes
    else:
        mask = (masks.to(tl.int32) >> (4 * HALF)) & 15
        if CODES:
            one = (values & 15).to(tl.float32) - 8.0
            other = (values >> 4).to(tl.float32) - 8.0
        else:
            one, other = values.to(tl.float32), second.to(tl.float32)
        p0 = _place(mask, one, other, 0).to(dtype)
        p1 = _place(mask, one, other, 1).to(dtype)
        p2 = _place(mask, one, other, 2).to(dtype)
        p3 = _place(mask, one, other, 3).to(dtype)
    return p0, p1, p2, p3


@triton.jit
def sparse24_kernel(
    x, values, masks, scales, bias, y, e0, e1, e2, e3, rows, n, blocks, groups,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr, CODES: tl.constexpr, HALVES: tl.constexpr,
    EXPAND: tl.constexpr, EXPAND_HIGH: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(x Wᵀ + bias))`` with x [4, rows, 32 blocks] planes.

    values [2, n, 32 blocks], or with CODES bytes of two 4-bit codes [n, 32 blocks] and scales [n, groups], a group of
    HALVES half blocks; masks uint8 [n, 16 blocks]: of quad j of a block of 32 below, of j + 16 above. A step takes
    PARTS neighbouring blocks.
    """
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Channels past the last are the last: they are read and not stored, and need no mask.
    channel = tl.minimum(at_n, n - 1).to(tl.int64)
    quads = blocks * 32
    plane = tl.cast(rows, tl.int64) * quads
    acc = tl.zeros((PARTS, BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, tl.cdiv(blocks, PARTS)):
        at_b = step * PARTS + tl.arange(0, PARTS)
        in_b = at_b < blocks
        tile = in_b[:, None, None]
        at_j = tl.arange(0, 16)[None, None, :]
        both = tl.load(masks + channel[None, :, None] * (blocks * 16) + at_b[:, None, None] * 16 + at_j, mask=tile,
                       other=0)  # fmt: skip
        for half in tl.static_range(2):
            at_q = at_b[:, None, None] * 32 + half * 16 + at_j
            offset = channel[None, :, None] * quads + at_q
            first = tl.load(values + offset, mask=tile, other=0)
            second = first
            if not CODES:
                second = tl.load(values + tl.cast(n, tl.int64) * quads + offset, mask=tile, other=0)
            if half == 0:
                p0, p1, p2, p3 = _expanded(both, first, second, x.dtype.element_ty, 0, CODES, EXPAND)
            else:
                p0, p1, p2, p3 = _expanded(both, first, second, x.dtype.element_ty, 1, CODES, EXPAND_HIGH)
            inside = (at_m < rows)[None, :, None] & tile
            start = x + at_m[None, :, None].to(tl.int64) * quads + at_q
            total = _add(tl.zeros((PARTS, BLOCK_M, BLOCK_N), dtype=tl.float32), start, inside, p0, PRECISION, EXACT)
            total = _add(total, start + plane, inside, p1, PRECISION, EXACT)
            total = _add(total, start + 2 * plane, inside, p2, PRECISION, EXACT)
            total = _add(total, start + 3 * plane, inside, p3, PRECISION, EXACT)
            if CODES:
                # Codes are whole numbers, exact in any type: the scale comes once for a group.
                group = (at_b * 2 + half) // HALVES
                scale = tl.load(scales + channel[None, :] * groups + group[:, None], mask=in_b[:, None], other=0.0)
                total *= scale.to(tl.float32)[:, None, :]
            acc += total
    value = tl.sum(acc, 0)
    row = tl.cast(0, tl.int64)
    finish(value, value, bias, y, e0, e1, e2, e3, row, at_m, at_n, rows, n, False, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def _add(total, start, inside, weights, PRECISION: tl.constexpr, EXACT: tl.constexpr):
    given = tl.load(start, mask=inside, other=0.0)
    if EXACT:
        given, weights = given.to(tl.float32), weights.to(tl.float32)
    return tl.dot(given, tl.permute(weights, (0, 2, 1)), total, input_precision=PRECISION)


@triton.jit
def expand24_kernel(
    values, masks, scales, y, n, blocks, groups, PARTS: tl.constexpr, CODES: tl.constexpr, HALVES: tl.constexpr
):  # fmt: skip
    """The dense weights y [n, 128 blocks] of those of :func:`sparse24_kernel`; a channel and PARTS blocks a program."""
    channel = tl.program_id(0).to(tl.int64)
    at_b = tl.program_id(1) * PARTS + tl.arange(0, PARTS)
    in_b = (at_b < blocks)[:, None]
    at_j = tl.arange(0, 16)[None, :]
    quads = blocks * 32
    both = tl.load(masks + channel * (blocks * 16) + at_b[:, None] * 16 + at_j, mask=in_b, other=0).to(tl.int32)
    for half in tl.static_range(2):
        mask = (both >> (4 * half)) & 15
        at_q = at_b[:, None] * 32 + half * 16 + at_j
        first = tl.load(values + channel * quads + at_q, mask=in_b, other=0)
        if CODES:
            group = (at_b * 2 + half) // HALVES
            scale = tl.load(scales + channel * groups + group, mask=at_b < blocks, other=0.0).to(tl.float32)[:, None]
            one = ((first & 15).to(tl.float32) - 8.0) * scale
            other = ((first >> 4).to(tl.float32) - 8.0) * scale
        else:
            one = first.to(tl.float32)
            other = tl.load(values + (n + channel) * quads + at_q, mask=in_b, other=0).to(tl.float32)
        even = tl.join(_place(mask, one, other, 0), _place(mask, one, other, 2))
        odd = tl.join(_place(mask, one, other, 1), _place(mask, one, other, 3))
        tile = tl.reshape(tl.join(even, odd), (PARTS, 16, 4))
        at = y + channel * (4 * quads) + at_q[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]
        tl.store(at, tile.to(y.dtype.element_ty), mask=in_b[:, :, None])


KERNELS: dict[str, Any] = {"sparse24": sparse24_kernel, "expand24": expand24_kernel}
"""The kernels by name."""
