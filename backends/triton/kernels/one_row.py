"""Products of one row by compressed weights: in 4-bit codes, in 8-bit codes, with the pattern 2:4, and with both.

Such a product is bound by the bytes of the weights, if nothing else takes as long. The tensor cores are of no use: to
feed them costs more than to multiply. So numbers are expanded to float32 in registers and multiplied as they are. A
program has four channels, whose loads are all in flight before the first is used, and its threads share out the columns
of a row; the row itself is read as 64-bit words of four numbers and expanded once for the four channels.

Tiles of all operands have one shape, so that their parts are in the same threads and nothing is moved between these.
Rows are in 16 bits. Words have their first number in the lowest bits.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .epilogues import finish

CHANNELS = 4
"""Channels that a program reads: with a gate two of the gate and their two others."""


@triton.jit
def _two(pair, NUMBER: tl.constexpr):
    """The two 16-bit numbers of a word of 32 bits, in float32."""
    if NUMBER == tl.bfloat16:  # noqa: SIM300
        low = (pair << 16).to(tl.float32, bitcast=True)
        high = (pair & -65536).to(tl.float32, bitcast=True)
    else:
        low = pair.to(tl.int16).to(NUMBER, bitcast=True).to(tl.float32)
        high = (pair >> 16).to(tl.int16).to(NUMBER, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def _four(quad, NUMBER: tl.constexpr):
    """The four 16-bit numbers of a word of 64 bits, in float32."""
    a, b = _two(quad.to(tl.int32), NUMBER)
    c, d = _two((quad >> 32).to(tl.int32), NUMBER)
    return a, b, c, d


@triton.jit
def _below(word, MASK: tl.constexpr, POWER: tl.constexpr, UNPACK: tl.constexpr):
    """The code that the mask leaves of a word, and the power of two whose bits are put above: their sum, exact."""
    if UNPACK != "":
        # The compiler makes two instructions of this one.
        bits = tl.inline_asm_elementwise(UNPACK, "=r,r", [word], dtype=tl.int32, is_pure=True, pack=1)
    else:
        bits = (word & MASK) | POWER
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _code(word, SHIFT: tl.constexpr, UNPACK: tl.constexpr):
    """``16 + c`` for a code of 4 bits, which the shift, to the left or if negative to the right, brings to bit 19."""
    return _below(word << SHIFT if SHIFT > 0 else word >> -SHIFT, 0x00780000, 0x41800000, UNPACK)


@triton.jit
def _byte(word, SHIFT: tl.constexpr, UNPACK: tl.constexpr):
    """``256 + c`` for a code of 8 bits, which the shift brings to bit 15."""
    return _below(word << SHIFT if SHIFT > 0 else word >> -SHIFT, 0x007F8000, 0x43800000, UNPACK)


@triton.jit
def _looked_up(table, word, SHIFT: tl.constexpr):
    return tl.load(table + ((word >> SHIFT) & 15))


@triton.jit
def _four_bits(
    word, table, l0, l1, l2, l3, h0, h1, h2, h3, NUMBER: tl.constexpr, TABLE: tl.constexpr, UNPACK: tl.constexpr
):  # fmt: skip
    """What 8 codes of a word contribute: of 16 + c, or of values of the table."""
    if TABLE and UNPACK != "":
        p0, p1, p2, p3 = tl.inline_asm_elementwise(
            UNPACK, "=r,=r,=r,=r,r", [word], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1
        )
        a0, a1 = _two(p0, NUMBER)
        a2, a3 = _two(p1, NUMBER)
        b0, b1 = _two(p2, NUMBER)
        b2, b3 = _two(p3, NUMBER)
    elif TABLE:
        a0, b0 = _looked_up(table, word, 0), _looked_up(table, word, 4)
        a1, b1 = _looked_up(table, word, 8), _looked_up(table, word, 12)
        a2, b2 = _looked_up(table, word, 16), _looked_up(table, word, 20)
        a3, b3 = _looked_up(table, word, 24), _looked_up(table, word, 28)
    else:
        a0, b0 = _code(word, 19, UNPACK), _code(word, 15, UNPACK)
        a1, b1 = _code(word, 11, UNPACK), _code(word, 7, UNPACK)
        a2, b2 = _code(word, 3, UNPACK), _code(word, -1, UNPACK)
        a3, b3 = _code(word, -5, UNPACK), _code(word, -9, UNPACK)
    part = a0 * l0 + a1 * l1 + a2 * l2 + a3 * l3
    return part + b0 * h0 + b1 * h1 + b2 * h2 + b3 * h3


@triton.jit
def _joined(a, b, c, d, PARTS: tl.constexpr):
    """The sums of four tensors [PARTS], side by side: [4]."""
    return tl.sum(tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (PARTS, 4)), 0)


@triton.jit
def _finish(
    a, b, c, d, bias, y, e0, e1, e2, e3, row, first, rows, n, PARTS: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """Add up what the threads have of the channels, and the end of the product."""
    at_m = row + tl.arange(0, 1)
    start = tl.cast(0, tl.int64)
    if GATED:
        value = tl.sum(tl.join(a, b), 0)[None, :]
        up = tl.sum(tl.join(c, d), 0)[None, :]
        finish(value, up, bias, y, e0, e1, e2, e3, start, at_m, first + tl.arange(0, 2), rows, n,
               GATED, HAS_BIAS, ACTIVATION, EPILOGUE)  # fmt: skip
    else:
        value = _joined(a, b, c, d, PARTS)[None, :]
        finish(value, value, bias, y, e0, e1, e2, e3, start, at_m, first + tl.arange(0, 4), rows, n,
               GATED, HAS_BIAS, ACTIVATION, EPILOGUE)  # fmt: skip


@triton.jit
def _channels(n, GATED: tl.constexpr):
    """The program's first output and its four channels; past the last they are the last, read and not stored."""
    first = tl.program_id(0) * (2 if GATED else 4)
    last = tl.cast(n, tl.int64) - 1
    zero = tl.minimum(tl.cast(first, tl.int64), last)
    one = tl.minimum(zero + 1, last)
    if GATED:
        two, three = zero + n, one + n
    else:
        two, three = tl.minimum(zero + 2, last), tl.minimum(zero + 3, last)
    return first, zero, one, two, three


@triton.jit
def four_bits_row_kernel(
    x, codes, scales, zeros, table, bias, y, e0, e1, e2, e3, rows, n, groups,
    HALF: tl.constexpr, PARTS: tl.constexpr, HAS_ZEROS: tl.constexpr, TABLE: tl.constexpr, UNPACK: tl.constexpr,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(x Wᵀ + bias))`` for weights in 4-bit codes.

    x int64 [rows, k / 4], codes int32 [n or 2 n, k / 8], scales and zeros [n or 2 n, groups]. A step takes PARTS
    neighbouring groups of 2 HALF columns.
    """
    NUMBER: tl.constexpr = scales.dtype.element_ty
    WORDS: tl.constexpr = HALF // 4
    first, zero, one, two, three = _channels(n, GATED)
    row = tl.program_id(1)
    at_w = tl.arange(0, WORDS)[None, :]
    a = tl.zeros((PARTS,), dtype=tl.float32)
    b, c, d = a, a, a
    for step in range(0, tl.cdiv(groups, PARTS)):
        at_g = step * PARTS + tl.arange(0, PARTS)
        in_g = at_g < groups
        place = at_g[:, None] * WORDS + at_w
        # All that comes from memory is on its way before the first of it is used.
        w0 = tl.load(codes + zero * groups * WORDS + place, mask=in_g[:, None], other=0)
        w1 = tl.load(codes + one * groups * WORDS + place, mask=in_g[:, None], other=0)
        w2 = tl.load(codes + two * groups * WORDS + place, mask=in_g[:, None], other=0)
        w3 = tl.load(codes + three * groups * WORDS + place, mask=in_g[:, None], other=0)
        start = x + row.to(tl.int64) * groups * (2 * WORDS) + at_g[:, None] * (2 * WORDS) + at_w
        low = tl.load(start, mask=in_g[:, None], other=0)
        high = tl.load(start + WORDS, mask=in_g[:, None], other=0)
        s0, z0 = _scale(scales, zeros, zero * groups + at_g, in_g, 8.0, 16.0, HAS_ZEROS)
        s1, z1 = _scale(scales, zeros, one * groups + at_g, in_g, 8.0, 16.0, HAS_ZEROS)
        s2, z2 = _scale(scales, zeros, two * groups + at_g, in_g, 8.0, 16.0, HAS_ZEROS)
        s3, z3 = _scale(scales, zeros, three * groups + at_g, in_g, 8.0, 16.0, HAS_ZEROS)
        l0, l1, l2, l3 = _four(low, NUMBER)
        h0, h1, h2, h3 = _four(high, NUMBER)
        p0 = _four_bits(w0, table, l0, l1, l2, l3, h0, h1, h2, h3, NUMBER, TABLE, UNPACK)
        p1 = _four_bits(w1, table, l0, l1, l2, l3, h0, h1, h2, h3, NUMBER, TABLE, UNPACK)
        p2 = _four_bits(w2, table, l0, l1, l2, l3, h0, h1, h2, h3, NUMBER, TABLE, UNPACK)
        p3 = _four_bits(w3, table, l0, l1, l2, l3, h0, h1, h2, h3, NUMBER, TABLE, UNPACK)
        total = tl.sum(l0 + l1 + l2 + l3 + h0 + h1 + h2 + h3, 1)
        a += _scaled(p0, total, s0, z0, TABLE)
        b += _scaled(p1, total, s1, z1, TABLE)
        c += _scaled(p2, total, s2, z2, TABLE)
        d += _scaled(p3, total, s3, z3, TABLE)
    _finish(a, b, c, d, bias, y, e0, e1, e2, e3, row, first, rows, n, PARTS, GATED, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def _scale(
    scales, zeros, place, inside, ZERO: tl.constexpr, OFFSET: tl.constexpr, HAS_ZEROS: tl.constexpr
):  # fmt: skip
    """The scales of groups and what is to be taken from a code plus OFFSET: that and a zero point, ZERO without any."""
    scale = tl.load(scales + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_ZEROS:
        zero = OFFSET + tl.load(zeros + place, mask=inside, other=0).to(tl.float32)
    else:
        zero = tl.full(scale.shape, OFFSET + ZERO, tl.float32)
    return scale, zero


@triton.jit
def _scaled(part, total, scale, zero, TABLE: tl.constexpr):
    """The parts of groups: what codes stand for over their values is a multiple of the sum of x."""
    result = tl.sum(part, 1)
    if not TABLE:
        result -= zero * total
    return result * scale


@triton.jit
def eight_bits_row_kernel(
    x, codes, scales, zeros, table, bias, y, e0, e1, e2, e3, rows, n, k, groups,
    WORDS: tl.constexpr, PARTS: tl.constexpr, KIND: tl.constexpr, HAS_ZEROS: tl.constexpr, GROUPED: tl.constexpr,
    PER: tl.constexpr, UNPACK: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(x Wᵀ + bias))`` for codes of 8 bits; see :func:`.eight_bits.eight_bits_few_kernel`.

    x int64 [rows, k / 4], codes int32 [n, k / 4]. A step takes PARTS neighbouring blocks of 4 WORDS columns; PER of
    these are a group if GROUPED.
    """
    NUMBER: tl.constexpr = scales.dtype.element_ty
    first, zero, one, two, three = _channels(n, False)
    row = tl.program_id(1)
    at_w = tl.arange(0, WORDS)[None, :]
    words = k // 4
    a = tl.zeros((PARTS,), dtype=tl.float32)
    b, c, d = a, a, a
    for step in range(0, tl.cdiv(words, PARTS * WORDS)):
        at_b = step * PARTS + tl.arange(0, PARTS)
        place = at_b[:, None] * WORDS + at_w
        inside = place < words
        # All that comes from memory is on its way before the first of it is used.
        w0 = tl.load(codes + zero * words + place, mask=inside, other=0)
        w1 = tl.load(codes + one * words + place, mask=inside, other=0)
        w2 = tl.load(codes + two * words + place, mask=inside, other=0)
        w3 = tl.load(codes + three * words + place, mask=inside, other=0)
        quad = tl.load(x + row.to(tl.int64) * words + place, mask=inside, other=0)
        at_g = at_b // PER if GROUPED else at_b * 0
        in_g = at_g < groups
        s0, z0 = _scale(scales, zeros, zero * groups + at_g, in_g, 128.0, 256.0, HAS_ZEROS)
        s1, z1 = _scale(scales, zeros, one * groups + at_g, in_g, 128.0, 256.0, HAS_ZEROS)
        s2, z2 = _scale(scales, zeros, two * groups + at_g, in_g, 128.0, 256.0, HAS_ZEROS)
        s3, z3 = _scale(scales, zeros, three * groups + at_g, in_g, 128.0, 256.0, HAS_ZEROS)
        x0, x1, x2, x3 = _four(quad, NUMBER)
        total = tl.sum(x0 + x1 + x2 + x3, 1)
        a += _scaled(_eight_bits(w0, table, x0, x1, x2, x3, KIND, UNPACK), total, s0, z0, KIND != "integer")
        b += _scaled(_eight_bits(w1, table, x0, x1, x2, x3, KIND, UNPACK), total, s1, z1, KIND != "integer")
        c += _scaled(_eight_bits(w2, table, x0, x1, x2, x3, KIND, UNPACK), total, s2, z2, KIND != "integer")
        d += _scaled(_eight_bits(w3, table, x0, x1, x2, x3, KIND, UNPACK), total, s3, z3, KIND != "integer")
    if KIND == "float":
        a, b, c, d = a * 256.0, b * 256.0, c * 256.0, d * 256.0
    _finish(a, b, c, d, bias, y, e0, e1, e2, e3, row, first, rows, n, PARTS, False, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def _eight_bits(
    word, table, x0, x1, x2, x3, KIND: tl.constexpr, UNPACK: tl.constexpr
):  # fmt: skip
    """What 4 codes of a word contribute: of 256 + c, of float8 less 256 times, or of values of the table."""
    if KIND == "integer":
        a0, a1 = _byte(word, 15, UNPACK), _byte(word, 7, UNPACK)
        a2, a3 = _byte(word, -1, UNPACK), _byte(word, -9, UNPACK)
    elif KIND == "float":
        # The bits of an e4m3 are those of a float16 256 times smaller.
        even, odd = word & 0x00FF00FF, (word >> 8) & 0x00FF00FF
        a0, a2 = _two(((even & 0x00800080) << 8) | ((even & 0x007F007F) << 7), tl.float16)
        a1, a3 = _two(((odd & 0x00800080) << 8) | ((odd & 0x007F007F) << 7), tl.float16)
    else:
        a0, a1 = tl.load(table + (word & 255)), tl.load(table + ((word >> 8) & 255))
        a2, a3 = tl.load(table + ((word >> 16) & 255)), tl.load(table + ((word >> 24) & 255))
    return a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3


@triton.jit
def sparse24_row_kernel(
    x, values, masks, scales, bias, y, e0, e1, e2, e3, rows, n, blocks, groups,
    PARTS: tl.constexpr, CODES: tl.constexpr, HALVES: tl.constexpr, CHOOSE: tl.constexpr, REGISTERS: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(x Wᵀ + bias))`` for weights with the pattern 2:4.

    x int64 [rows, 32 blocks], a quad to a word; values [2, n, 32 blocks] or with CODES bytes [n, 32 blocks] and scales
    [n, groups], a group of HALVES half blocks; masks uint8 [n, 16 blocks]. See :func:`.sparse.sparse24_kernel`. CHOOSE
    is assembly from ``unpacking.py`` whose operands are REGISTERS, or "".
    """
    NUMBER: tl.constexpr = scales.dtype.element_ty
    first, zero, one, two, three = _channels(n, False)
    row = tl.program_id(1)
    at_j = tl.arange(0, 16)[None, :]
    a = tl.zeros((PARTS,), dtype=tl.float32)
    b, c, d = a, a, a
    for step in range(0, tl.cdiv(blocks, PARTS)):
        at_b = step * PARTS + tl.arange(0, PARTS)
        in_b = at_b < blocks
        start = x + row.to(tl.int64) * blocks * 32 + at_b[:, None] * 32 + at_j
        low = tl.load(start, mask=in_b[:, None], other=0)
        high = tl.load(start + 16, mask=in_b[:, None], other=0)
        # All that comes from memory is on its way before the first of it is used.
        m0, q0, r0, t0, u0, s0, z0 = _loaded(values, masks, scales, zero, n, blocks, groups, at_b, in_b, CODES, HALVES)
        m1, q1, r1, t1, u1, s1, z1 = _loaded(values, masks, scales, one, n, blocks, groups, at_b, in_b, CODES, HALVES)
        m2, q2, r2, t2, u2, s2, z2 = _loaded(values, masks, scales, two, n, blocks, groups, at_b, in_b, CODES, HALVES)
        m3, q3, r3, t3, u3, s3, z3 = _loaded(values, masks, scales, three, n, blocks, groups, at_b, in_b, CODES, HALVES)
        a += _sparse(m0, q0, r0, t0, u0, s0, z0, low, high, NUMBER, CODES, CHOOSE, REGISTERS)
        b += _sparse(m1, q1, r1, t1, u1, s1, z1, low, high, NUMBER, CODES, CHOOSE, REGISTERS)
        c += _sparse(m2, q2, r2, t2, u2, s2, z2, low, high, NUMBER, CODES, CHOOSE, REGISTERS)
        d += _sparse(m3, q3, r3, t3, u3, s3, z3, low, high, NUMBER, CODES, CHOOSE, REGISTERS)
    _finish(a, b, c, d, bias, y, e0, e1, e2, e3, row, first, rows, n, PARTS, False, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def _loaded(
    values, masks, scales, channel, n, blocks, groups, at_b, in_b, CODES: tl.constexpr, HALVES: tl.constexpr
):  # fmt: skip
    """Masks of a channel's blocks, values of their first halves and of their second, scales of these."""
    at_j = tl.arange(0, 16)[None, :]
    tile = in_b[:, None]
    both = tl.load(masks + channel * blocks * 16 + at_b[:, None] * 16 + at_j, mask=tile, other=0)
    start = values + channel * blocks * 32 + at_b[:, None] * 32 + at_j
    first = tl.load(start, mask=tile, other=0)
    third = tl.load(start + 16, mask=tile, other=0)
    second, fourth = first, third
    scale = tl.full(at_b.shape, 1.0, tl.float32)
    other = scale
    if CODES:
        place = scales + channel * groups
        scale = tl.load(place + (at_b * 2) // HALVES, mask=in_b, other=0.0).to(tl.float32)
        other = tl.load(place + (at_b * 2 + 1) // HALVES, mask=in_b, other=0.0).to(tl.float32)
    else:
        start += tl.cast(n, tl.int64) * blocks * 32
        second = tl.load(start, mask=tile, other=0)
        fourth = tl.load(start + 16, mask=tile, other=0)
    return both, first, second, third, fourth, scale, other


@triton.jit
def _sparse(
    both, first, second, third, fourth, scale, other, low, high,
    NUMBER: tl.constexpr, CODES: tl.constexpr, CHOOSE: tl.constexpr, REGISTERS: tl.constexpr,
):  # fmt: skip
    """What blocks contribute to a channel, [PARTS]."""
    if CHOOSE == "":
        p0 = _chosen(both & 15, first, second, low, NUMBER, CODES)
        p1 = _chosen(both >> 4, third, fourth, high, NUMBER, CODES)
    elif CODES:
        p0, p1 = tl.inline_asm_elementwise(
            CHOOSE, REGISTERS, [both, first, third, low, high], dtype=(tl.float32, tl.float32), is_pure=True, pack=4
        )
    else:
        p0, p1 = tl.inline_asm_elementwise(
            CHOOSE, REGISTERS, [both, first, second, third, fourth, low, high], dtype=(tl.float32, tl.float32),
            is_pure=True, pack=4,
        )  # fmt: skip
    return tl.sum(p0, 1) * scale + tl.sum(p1, 1) * other if CODES else tl.sum(p0 + p1, 1)


@triton.jit
def _chosen(mask, first, second, quad, NUMBER: tl.constexpr, CODES: tl.constexpr):
    """What quads contribute, by plain operations."""
    a, b, c, d = _four(quad, NUMBER)
    x = tl.where((mask & 1) != 0, a, tl.where((mask & 2) != 0, b, c))
    y = tl.where((mask & 8) != 0, d, tl.where((mask & 4) != 0, c, b))
    if CODES:
        part = ((first & 15).to(tl.float32) - 8.0) * x + ((first >> 4).to(tl.float32) - 8.0) * y
    else:
        part = first.to(tl.float32) * x + second.to(tl.float32) * y
    return part


KERNELS: dict[str, Any] = {
    "four_bits_row": four_bits_row_kernel, "eight_bits_row": eight_bits_row_kernel,
    "sparse24_row": sparse24_row_kernel,
}  # fmt: skip
"""The kernels by name."""
