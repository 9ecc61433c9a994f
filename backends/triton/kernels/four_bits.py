"""Products by weights in 4-bit codes: integers with or without zero points, or places in a table of 16 values (NF4).

A byte holds two columns of a group, half a group apart. It is expanded in registers: ``UNPACK``, a piece of assembly
from ``unpacking.py``, turns 4 bytes into 8 numbers of 16 bits in about 11 instructions, a third of what the compiler
makes of shifts and conversions; without it (float32, the interpreter) plain operations do the same.

Few rows are bound by the bytes of the codes. One program then has only a few channels, and its warps share out the
groups among them: a product with a batch axis, one part to a warp, summed up once at the end, so that no second launch
is needed. Many rows are bound by the tensor cores: weights are the left operand, from registers.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .epilogues import finish
from .gemm import grouped


@triton.jit
def planes(byte, table, dtype: tl.constexpr, UNPACK: tl.constexpr, TABLE: tl.constexpr):
    """What the low and the high halves of bytes stand for: codes less 8, or values of the table."""
    if UNPACK != "" and dtype == tl.bfloat16:
        low, high = tl.inline_asm_elementwise(
            UNPACK, "=r,=r,=r,=r,r", [byte], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    elif UNPACK != "":
        low, high = tl.inline_asm_elementwise(
            UNPACK, "=r,=r,=r,=r,r", [byte], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    elif TABLE:
        low = tl.load(table + (byte & 15).to(tl.int32)).to(dtype)
        high = tl.load(table + (byte >> 4).to(tl.int32)).to(dtype)
    else:
        low = ((byte & 15).to(tl.float32) - 8.0).to(dtype)
        high = ((byte >> 4).to(tl.float32) - 8.0).to(dtype)
    return low, high


@triton.jit
def four_bits_few_kernel(
    x, codes, scales, zeros, table, bias, y, e0, e1, e2, e3, rows, n, groups,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, HAS_ZEROS: tl.constexpr,
    TABLE: tl.constexpr, UNPACK: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(x Wᵀ + bias))`` for few rows of x [rows, k].

    codes [n, k / 2], scales and zeros [n, groups]. A step takes PARTS neighbouring groups of 2 HALF columns. With GATED
    there are 2 n channels.
    """
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Channels past the last are the last: they are read and not stored, and need no mask.
    channel = tl.minimum(at_n, n - 1).to(tl.int64)
    acc = tl.zeros((PARTS, BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = acc
    for step in range(0, tl.cdiv(groups, PARTS)):
        at_g = step * PARTS + tl.arange(0, PARTS)
        at_h = at_g[:, None, None] * HALF + tl.arange(0, HALF)[None, None, :]
        inside = (at_m < rows)[None, :, None] & (at_g < groups)[:, None, None]
        start = x + at_m[None, :, None].to(tl.int64) * (groups * 2 * HALF) + at_h + at_g[:, None, None] * HALF
        low = tl.load(start, mask=inside, other=0.0)
        high = tl.load(start + HALF, mask=inside, other=0.0)
        if EXACT:
            low, high = low.to(tl.float32), high.to(tl.float32)
        acc = _add_groups(acc, low, high, codes, scales, zeros, table, channel, at_g, at_h, groups,
                          HALF, HAS_ZEROS, TABLE, UNPACK, PRECISION)  # fmt: skip
        if GATED:
            up = _add_groups(up, low, high, codes, scales, zeros, table, channel + n, at_g, at_h, groups,
                             HALF, HAS_ZEROS, TABLE, UNPACK, PRECISION)  # fmt: skip
    value = tl.sum(acc, 0)
    other = tl.sum(up, 0) if GATED else value
    first = tl.cast(0, tl.int64)
    finish(value, other, bias, y, e0, e1, e2, e3, first, at_m, at_n, rows, n, GATED, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def _add_groups(
    acc, low, high, codes, scales, zeros, table, channel, at_g, at_h, groups,
    HALF: tl.constexpr, HAS_ZEROS: tl.constexpr, TABLE: tl.constexpr, UNPACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    in_g = at_g < groups
    byte = tl.load(codes + channel[None, :, None] * (groups * HALF) + at_h, mask=in_g[:, None, None], other=0)
    place = channel[None, :] * groups + at_g[:, None]
    scale = tl.load(scales + place, mask=in_g[:, None], other=0.0).to(tl.float32)
    first, second = planes(byte, table, low.dtype, UNPACK, TABLE)
    total = tl.dot(low, tl.permute(first, (0, 2, 1)), input_precision=PRECISION)
    total = tl.dot(high, tl.permute(second, (0, 2, 1)), total, input_precision=PRECISION)
    if HAS_ZEROS:
        # Σ (c - z) x = Σ (c - 8) x + Σ (8 - z) x, the second by the tensor cores, too: no work on each code.
        shift = (8.0 - tl.load(zeros + place, mask=in_g[:, None], other=8).to(tl.float32)).to(low.dtype)
        shifts = tl.broadcast_to(shift[:, None, :], (low.shape[0], HALF, channel.shape[0]))
        total = tl.dot(low, shifts, total, input_precision=PRECISION)
        total = tl.dot(high, shifts, total, input_precision=PRECISION)
    return acc + total * scale[:, None, :]


@triton.jit
def four_bits_many_kernel(
    x, codes, scales, zeros, table, bias, y, e0, e1, e2, e3, rows, n, groups,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, HAS_ZEROS: tl.constexpr,
    TABLE: tl.constexpr, UNPACK: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """:func:`four_bits_few_kernel` for many rows, without a gate; a step takes a group."""
    tile_m, tile_n = grouped(tl.program_id(0), rows, n, BLOCK_M, BLOCK_N, GROUP)
    at_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    at_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.minimum(at_n, n - 1).to(tl.int64)
    row = tl.minimum(at_m, rows - 1).to(tl.int64)
    at_h = tl.arange(0, HALF)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for group in range(0, groups):
        byte = tl.load(codes + channel[:, None] * (groups * HALF) + group * HALF + at_h[None, :])
        scale = tl.load(scales + channel * groups + group).to(tl.float32)
        start = x + row[:, None] * (groups * 2 * HALF) + group * 2 * HALF + at_h[None, :]
        low, high = tl.load(start), tl.load(start + HALF)
        if EXACT:
            low, high = low.to(tl.float32), high.to(tl.float32)
        first, second = planes(byte, table, low.dtype, UNPACK, TABLE)
        if HAS_ZEROS:
            # Whole numbers up to 15 are exact in any type; each is used for all rows of the tile.
            shift = (8.0 - tl.load(zeros + channel * groups + group).to(tl.float32)).to(low.dtype)[:, None]
            first, second = first + shift, second + shift
        total = tl.dot(first, tl.trans(low), input_precision=PRECISION)
        total = tl.dot(second, tl.trans(high), total, input_precision=PRECISION)
        acc += total * scale[:, None]
    value = tl.trans(acc)
    first_row = tl.cast(0, tl.int64)
    finish(value, value, bias, y, e0, e1, e2, e3, first_row, at_m, at_n, rows, n, False, HAS_BIAS, ACTIVATION, EPILOGUE)


KERNELS: dict[str, Any] = {"four_bits_few": four_bits_few_kernel, "four_bits_many": four_bits_many_kernel}
"""The kernels by name."""
