"""Figures of rows: statistics for a normalization in a prologue, and rounding to 8 bits with a scale to a row."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def statistics_kernel(x, mean, scale, k, epsilon, CENTRED: tl.constexpr, BLOCK: tl.constexpr):
    """Of a row of x [rows, k]: its mean if CENTRED, and ``1 / sqrt(variance or mean square + epsilon)``; two passes."""
    row = tl.program_id(0).to(tl.int64)
    start = x + row * k
    middle = 0.0
    if CENTRED:
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for step in range(0, k, BLOCK):
            at = step + tl.arange(0, BLOCK)
            total += tl.load(start + at, mask=at < k, other=0.0).to(tl.float32)
        middle = tl.sum(total, 0) / k
        tl.store(mean + row, middle)
    square = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(0, k, BLOCK):
        at = step + tl.arange(0, BLOCK)
        value = tl.load(start + at, mask=at < k, other=0.0).to(tl.float32)
        value = tl.where(at < k, value - middle, 0.0)
        square += value * value
    tl.store(scale + row, 1.0 / tl.sqrt(tl.sum(square, 0) / k + epsilon))


@triton.jit
def quantize_rows_kernel(x, codes, scales, k, TOP: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of x [rows, k] as codes with a scale to a row, ``absmax / TOP``; WHOLE codes are rounded half to even."""
    row = tl.program_id(0).to(tl.int64)
    start = x + row * k
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(0, k, BLOCK):
        at = step + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(tl.load(start + at, mask=at < k, other=0.0).to(tl.float32)))
    top = tl.max(largest, 0)
    scale = tl.where(top > 0, top / TOP, 1.0)
    tl.store(scales + row, scale)
    for step in range(0, k, BLOCK):
        at = step + tl.arange(0, BLOCK)
        value = tl.load(start + at, mask=at < k, other=0.0).to(tl.float32) / scale
        value = tl.minimum(tl.maximum(value, -TOP), TOP)
        if WHOLE:
            # Adding and taking away 1.5 · 2^23 leaves float32 no place for a fraction.
            value = (value + 12582912.0) - 12582912.0
        tl.store(codes + row * k + at, value.to(codes.dtype.element_ty), mask=at < k)


KERNELS: dict[str, Any] = {"statistics": statistics_kernel, "quantize_rows": quantize_rows_kernel}
"""The kernels by name."""
