"""Products of dense matrices, with what comes before and after them.

:func:`gemm_kernel` takes tiles of rows and channels in an order that keeps what neighbours share in the second-level
cache, and can share out the columns among several programs (split-K); :func:`gemm_tma_kernel` is the same with operands
fetched by the copy engine of Hopper GPUs; :func:`gemv_kernel` is for one row, which is bound by the bytes of the
weights: each thread loads 16 bytes at a time and sums up in registers.

``EXACT`` multiplies in float32: Triton's interpreter has no products in bfloat16.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .epilogues import finish_or_part, reduce_kernel


@triton.jit
def grouped(program, rows, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """The tile (of rows, of channels) of a program: GROUP tiles of rows go through the channels together."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(n, BLOCK_N)
    first = program // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    inner = program % (GROUP * tiles_n)
    return first + inner % height, inner // height


@triton.jit
def gemm_kernel(
    x, w, bias, y, e0, e1, e2, e3, p0, p1, p2, p3,
    batches, rows, n, k, x_batch, x_row, w_batch, w_row,
    W_NK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SPLITS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EPILOGUE: tl.constexpr, HAS_PROLOGUE: tl.constexpr, PROLOGUE: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(prologue(x) W + bias))``.

    x [batches, rows, k]; w [batches or 1, n, k] if W_NK, else [.., k, n]; the last axis of both is dense. With GATED
    the channels are 2 n, the gate's first, and y is ``activation(gate) up``.
    """
    tile_m, tile_n = grouped(tl.program_id(0), rows, n, BLOCK_M, BLOCK_N, GROUP)
    part, batch = tl.program_id(1), tl.program_id(2)
    at_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    at_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = at_m < rows, at_n < n
    x_start = x + batch.to(tl.int64) * x_batch + at_m[:, None].to(tl.int64) * x_row
    w_start = w + batch.to(tl.int64) * w_batch
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = acc
    each = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLITS)
    row = batch.to(tl.int64) * rows + tl.minimum(at_m, rows - 1)[:, None].to(tl.int64)
    for step in range(part * each, (part + 1) * each):
        at_k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = at_k < k
        inside = in_m[:, None] & in_k[None, :]
        a = tl.load(x_start + at_k[None, :], mask=inside, other=0.0)
        if HAS_PROLOGUE:
            a = PROLOGUE(a.to(tl.float32), row, at_k[None, :], inside, k, p0, p1, p2, p3).to(x.dtype.element_ty)
        if EXACT:
            a = a.to(tl.float32)
        if W_NK:
            start = w_start + at_n[:, None].to(tl.int64) * w_row + at_k[None, :]
            valid = in_n[:, None] & in_k[None, :]
            b = tl.trans(tl.load(start, mask=valid, other=0.0))
        else:
            start = w_start + at_k[:, None].to(tl.int64) * w_row + at_n[None, :]
            valid = in_k[:, None] & in_n[None, :]
            b = tl.load(start, mask=valid, other=0.0)
        if EXACT:
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if GATED:
            if W_NK:
                c = tl.trans(tl.load(start + tl.cast(n, tl.int64) * w_row, mask=valid, other=0.0))
            else:
                c = tl.load(start + n, mask=valid, other=0.0)
            if EXACT:
                c = c.to(tl.float32)
            up = tl.dot(a, c, up, input_precision=PRECISION)
    finish_or_part(acc, up, bias, y, e0, e1, e2, e3, batch, part, batches, at_m, at_n, rows, n,
                   SPLITS, GATED, HAS_BIAS, ACTIVATION, EPILOGUE)  # fmt: skip


@triton.jit
def gemm_tma_kernel(
    x, w, bias, y, e0, e1, e2, e3, rows, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """``y = epilogue(activation(x Wᵀ + bias))``, x [rows, k] and w [n, k] as descriptors; zeros lie outside."""
    tile_m, tile_n = grouped(tl.program_id(0), rows, n, BLOCK_M, BLOCK_N, GROUP)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, tl.cdiv(k, BLOCK_K)):
        a = x.load([tile_m * BLOCK_M, step * BLOCK_K])
        b = w.load([tile_n * BLOCK_N, step * BLOCK_K])
        if EXACT:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, tl.trans(b), acc)
    at_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    at_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    finish_or_part(acc, acc, bias, y, e0, e1, e2, e3, tl.program_id(1), 0, 1, at_m, at_n, rows, n,
                   1, False, HAS_BIAS, ACTIVATION, EPILOGUE)  # fmt: skip


@triton.jit
def gemv_kernel(
    x, w, bias, y, e0, e1, e2, e3, p0, p1, p2, p3, rows, n, k,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr, HAS_PROLOGUE: tl.constexpr, PROLOGUE: tl.constexpr,
):  # fmt: skip
    """:func:`gemm_kernel` for dense w [n or 2 n, k], a row of x [rows, k] to a program."""
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part, at_row = tl.program_id(1), tl.program_id(2)
    in_n = at_n < n
    start = w + at_n[:, None].to(tl.int64) * k
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    up = acc
    each = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLITS)
    row = at_row.to(tl.int64)
    for step in range(part * each, (part + 1) * each):
        at_k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = in_n[:, None] & (at_k < k)[None, :]
        a = tl.load(x + row * k + at_k[None, :], mask=(at_k < k)[None, :], other=0.0).to(tl.float32)
        if HAS_PROLOGUE:
            a = PROLOGUE(a, row, at_k[None, :], (at_k < k)[None, :], k, p0, p1, p2, p3)
            # As the product of several rows has it: rounded to the type of x.
            a = a.to(x.dtype.element_ty).to(tl.float32)
        acc += tl.load(start + at_k[None, :], mask=inside, other=0.0).to(tl.float32) * a
        if GATED:
            gate = start + tl.cast(n, tl.int64) * k + at_k[None, :]
            up += tl.load(gate, mask=inside, other=0.0).to(tl.float32) * a
    value = tl.sum(acc, 1)[None, :]
    gated = tl.sum(up, 1)[None, :] if GATED else value
    at_m = at_row + tl.arange(0, 1)
    finish_or_part(value, gated, bias, y, e0, e1, e2, e3, 0, part, 1, at_m, at_n, rows, n,
                   SPLITS, GATED, HAS_BIAS, ACTIVATION, EPILOGUE)  # fmt: skip


KERNELS: dict[str, Any] = {
    "gemm": gemm_kernel, "gemm_tma": gemm_tma_kernel, "gemv": gemv_kernel, "reduce": reduce_kernel,
}  # fmt: skip
"""The kernels by name."""
