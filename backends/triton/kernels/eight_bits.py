"""Products by weights in 8-bit codes: integers, float8 (e4m3) or places in a table of 256; and 8 bits by 8 bits.

:func:`eight_bits_few_kernel` and :func:`eight_bits_many_kernel` take activations in 16 or 32 bits and expand the codes
in registers, as those of ``four_bits.py`` do: few rows are bound by the codes' bytes, and the warps share out the
columns; many by the tensor cores, whose left operand weights are. :func:`scaled_kernel` multiplies codes by codes, with
a scale to a row and one to a channel.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .epilogues import finish, finish_or_part
from .gemm import grouped


@triton.jit
def from_e4m3(byte):
    """Bytes of float8 e4m3 as float16, for GPUs without it: its bits are those of a float16 256 times smaller."""
    wide = byte.to(tl.int16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def _expanded(
    byte, zero, table, dtype: tl.constexpr, KIND: tl.constexpr, HAS_ZEROS: tl.constexpr
):  # fmt: skip
    """What codes stand for, without their scale."""
    if KIND == "integer":
        # Differences of codes are whole numbers up to 255, exact in any type.
        value = byte.to(tl.float32) - (zero.to(tl.float32) if HAS_ZEROS else 128.0)
    elif KIND == "float":
        value = from_e4m3(byte)
    else:
        value = tl.load(table + byte.to(tl.int32))
    return value.to(dtype)


@triton.jit
def eight_bits_few_kernel(
    x, codes, scales, zeros, table, bias, y, e0, e1, e2, e3, rows, n, k, groups,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, KIND: tl.constexpr,
    HAS_ZEROS: tl.constexpr, GROUPED: tl.constexpr, PER: tl.constexpr, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(x Wᵀ + bias))``: x [rows, k], codes uint8 [n, k], scales and zeros [n, groups].

    KIND: "integer" (code less its zero point, or less 128), "float" (e4m3) or "table" (float32 [256]). A step takes
    PARTS neighbouring blocks of BLOCK_K columns; PER of these are a group if GROUPED, else a channel has one scale.
    """
    tile_m, tile_n = grouped(tl.program_id(0), rows, n, BLOCK_M, BLOCK_N, GROUP)
    at_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    at_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.minimum(at_n, n - 1).to(tl.int64)
    acc = tl.zeros((PARTS, BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, tl.cdiv(k, PARTS * BLOCK_K)):
        at_b = step * PARTS + tl.arange(0, PARTS)
        at_k = at_b[:, None, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, :]
        in_k = at_k < k
        a = tl.load(
            x + at_m[None, :, None].to(tl.int64) * k + at_k, mask=(at_m < rows)[None, :, None] & in_k, other=0.0
        )
        if EXACT:
            a = a.to(tl.float32)
        byte = tl.load(codes + channel[None, :, None] * k + at_k, mask=in_k, other=0)
        at_g = at_b // PER
        in_g = at_g < groups
        place = channel[None, :] * groups + at_g[:, None]
        zero = byte
        if HAS_ZEROS and GROUPED:
            zero = tl.load(zeros + place, mask=in_g[:, None], other=128)[:, :, None]
        elif HAS_ZEROS:
            zero = tl.load(zeros + channel)[None, :, None]
        w = _expanded(byte, zero, table, a.dtype, KIND, HAS_ZEROS)
        total = tl.dot(a, tl.permute(w, (0, 2, 1)), input_precision=PRECISION)
        if GROUPED:
            total *= tl.load(scales + place, mask=in_g[:, None], other=0.0).to(tl.float32)[:, None, :]
        acc += total
    value = tl.sum(acc, 0)
    if not GROUPED:
        value *= tl.load(scales + channel).to(tl.float32)[None, :]
    first = tl.cast(0, tl.int64)
    finish(value, value, bias, y, e0, e1, e2, e3, first, at_m, at_n, rows, n, False, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def eight_bits_many_kernel(
    x, codes, scales, zeros, table, bias, y, e0, e1, e2, e3, rows, n, k, groups,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr,
    HAS_ZEROS: tl.constexpr, GROUPED: tl.constexpr, PER: tl.constexpr, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """:func:`eight_bits_few_kernel` for many rows; a step takes BLOCK_K columns."""
    tile_m, tile_n = grouped(tl.program_id(0), rows, n, BLOCK_M, BLOCK_N, GROUP)
    at_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    at_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.minimum(at_n, n - 1).to(tl.int64)
    row = tl.minimum(at_m, rows - 1).to(tl.int64)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for step in range(0, tl.cdiv(k, BLOCK_K)):
        at_k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = (at_k < k)[None, :]
        byte = tl.load(codes + channel[:, None] * k + at_k[None, :], mask=in_k, other=0)
        a = tl.load(x + row[:, None] * k + at_k[None, :], mask=in_k, other=0.0)
        if EXACT:
            a = a.to(tl.float32)
        place = channel * groups + (step // PER if GROUPED else 0)
        zero = byte
        if HAS_ZEROS:
            zero = tl.load(zeros + place)[:, None]
        w = _expanded(byte, zero, table, a.dtype, KIND, HAS_ZEROS)
        if GROUPED:
            total = tl.dot(w, tl.trans(a), input_precision=PRECISION)
            acc += total * tl.load(scales + place).to(tl.float32)[:, None]
        else:
            acc = tl.dot(w, tl.trans(a), acc, input_precision=PRECISION)
    if not GROUPED:
        acc *= tl.load(scales + channel).to(tl.float32)[:, None]
    value = tl.trans(acc)
    first = tl.cast(0, tl.int64)
    finish(value, value, bias, y, e0, e1, e2, e3, first, at_m, at_n, rows, n, False, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def scaled_kernel(
    x, w, row_scales, channel_scales, row_zeros, channel_sums, bias, y, e0, e1, e2, e3, rows, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    KIND: tl.constexpr, HAS_ZEROS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(s_row s_channel (x Wᵀ) + bias))``: codes x [rows, k], w [n, k].

    KIND: "integer" (int8, summed in int32), "float" (e4m3) or "bytes" (e4m3 as uint8, multiplied in float16). With
    HAS_ZEROS rows of x have a zero point: (x - z) Wᵀ = x Wᵀ - z Σ W, the sums [n] of all codes of a channel in int32.
    """
    tile_m, tile_n = grouped(tl.program_id(0), rows, n, BLOCK_M, BLOCK_N, GROUP)
    part = tl.program_id(1)
    at_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    at_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row, channel = tl.minimum(at_m, rows - 1).to(tl.int64), tl.minimum(at_n, n - 1).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32 if KIND == "integer" else tl.float32)
    up = acc
    each = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLITS)
    for step in range(part * each, (part + 1) * each):
        at_k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = (at_k < k)[None, :]
        start = w + channel[:, None] * k + at_k[None, :]
        a = _codes(x + row[:, None] * k + at_k[None, :], in_k, KIND)
        acc = _add_codes(acc, a, _codes(start, in_k, KIND), KIND)
        if GATED:
            up = _add_codes(up, a, _codes(start + tl.cast(n, tl.int64) * k, in_k, KIND), KIND)
    if HAS_ZEROS:
        zero = tl.load(row_zeros + row).to(tl.int32)[:, None]
        if SPLITS > 1:
            zero = tl.where(part == 0, zero, 0)
        acc -= zero * tl.load(channel_sums + channel)[None, :]
        if GATED:
            up -= zero * tl.load(channel_sums + n + channel)[None, :]
    row_scale = tl.load(row_scales + row).to(tl.float32)[:, None]
    value = acc.to(tl.float32) * row_scale * tl.load(channel_scales + channel).to(tl.float32)[None, :]
    other = value
    if GATED:
        other = up.to(tl.float32) * row_scale * tl.load(channel_scales + n + channel).to(tl.float32)[None, :]
    finish_or_part(value, other, bias, y, e0, e1, e2, e3, 0, part, 1, at_m, at_n, rows, n,
                   SPLITS, GATED, HAS_BIAS, ACTIVATION, EPILOGUE)  # fmt: skip


@triton.jit
def _codes(start, inside, KIND: tl.constexpr):
    return tl.load(start, mask=inside, other=0.0 if KIND == "float" else 0)


@triton.jit
def _add_codes(acc, a, b, KIND: tl.constexpr):
    if KIND == "integer":
        acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
    elif KIND == "bytes":
        acc = tl.dot(from_e4m3(a), tl.trans(from_e4m3(b)), acc)
    else:
        # Hopper sums products of float8 in 14 bits: after 128 of them they go to float32.
        acc = tl.dot(a, tl.trans(b), acc, max_num_imprecise_acc=128)
    return acc


KERNELS: dict[str, Any] = {
    "eight_bits_few": eight_bits_few_kernel, "eight_bits_many": eight_bits_many_kernel, "scaled": scaled_kernel,
}  # fmt: skip
"""The kernels by name."""
