"""Rotary positions (Su et al. 2021, eq. 34) and the write of keys and values to the cache, in one go."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _rotated(start, at, half, cos, sin, inside, PAIRS: tl.constexpr):
    """The two halves of a head after rotation; with PAIRS neighbours are a pair, else numbers half a head apart."""
    if PAIRS:
        first = tl.load(start + 2 * at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(start + 2 * at + 1, mask=inside, other=0.0).to(tl.float32)
    else:
        first = tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(start + half + at, mask=inside, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _keep(target, at, value, inside):
    tl.store(target + at, value.to(target.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first_slot"])
def rope_cache_kernel(
    qkv, cos, sin, positions, slots, q, k_cache, v_cache, k_scales, v_scales,
    heads, shared, length, d, rotary, row, capacity, first_slot,
    BLOCK: tl.constexpr, PAIRS: tl.constexpr, INTEGERS: tl.constexpr, IN_ORDER: tl.constexpr,
):  # fmt: skip
    """A token's head: queries to q, keys and values to the caches.

    qkv [batch length, heads + 2 shared, d] with rows of ``row``; cos, sin [places, rotary / 2]; positions and slots
    int64 [batch length]; q [batch, heads, length, d]; caches [batch, shared, capacity, d], int8 with INTEGERS and then
    scales [batch, shared, capacity]. Numbers past ``rotary`` are not rotated. IN_ORDER: tokens have a row of cos and
    sin each, and go to neighbouring slots from ``first_slot`` on.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, place = token // length, token % length
    half = rotary // 2
    at = tl.arange(0, BLOCK)
    start = qkv + token * row + head * d
    if IN_ORDER:
        position, slot = token, first_slot + place
    else:
        position = tl.load(positions + token)
        slot = tl.load(slots + token)
    is_q, is_k = head < heads, head < heads + shared
    inside = at < half
    # Values turn by an angle of 0.
    turned = at < tl.where(is_k, half, 0)
    c = tl.load(cos + position * half + at, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + position * half + at, mask=turned, other=0.0).to(tl.float32)
    first, second = _rotated(start, at, half, c, s, inside, PAIRS)
    # The rest, in two parts of at most BLOCK, as it is.
    rest_at, rest_at2 = rotary + at, rotary + BLOCK + at
    rest = tl.load(start + rest_at, mask=rest_at < d, other=0.0).to(tl.float32)
    rest2 = tl.load(start + rest_at2, mask=rest_at2 < d, other=0.0).to(tl.float32)
    if PAIRS:
        at_first, at_second = 2 * at, 2 * at + 1
    else:
        at_first, at_second = at, half + at
    if is_q:
        to_q = q + ((batch * heads + head) * length + place) * d
        _keep(to_q, at_first, first, inside)
        _keep(to_q, at_second, second, inside)
        _keep(to_q, rest_at, rest, rest_at < d)
        _keep(to_q, rest_at2, rest2, rest_at2 < d)
    else:
        mine = head - heads - tl.where(is_k, 0, shared)
        line = (batch * shared + mine) * capacity + slot
        cache, scales = k_cache, k_scales
        if not is_k:
            cache, scales = v_cache, v_scales
        to_cache = cache + line * d
        if INTEGERS:
            # Outside all are zeros, and zeros turned are zeros.
            top = tl.max(
                tl.maximum(tl.maximum(tl.abs(first), tl.abs(second)), tl.maximum(tl.abs(rest), tl.abs(rest2))), 0
            )
            scale = tl.where(top > 0, top / 127.0, 1.0)
            tl.store(scales + line, scale)
            # Adding and taking away 1.5 · 2^23 leaves float32 no place for a fraction.
            first, second = (first / scale + 12582912.0) - 12582912.0, (second / scale + 12582912.0) - 12582912.0
            rest, rest2 = (rest / scale + 12582912.0) - 12582912.0, (rest2 / scale + 12582912.0) - 12582912.0
        _keep(to_cache, at_first, first, inside)
        _keep(to_cache, at_second, second, inside)
        _keep(to_cache, rest_at, rest, rest_at < d)
        _keep(to_cache, rest_at2, rest2, rest_at2 < d)


KERNELS: dict[str, Any] = {"rope_cache": rope_cache_kernel}
"""The kernels by name."""
