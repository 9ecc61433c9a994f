"""What a product does to its operand while loading it, and to its result before storing it.

An *activation* maps a tile in float32. An *epilogue* may also read up to four tensors that lie beside the result; a
*prologue* up to four beside the first operand. All are compiled into the kernel that they are given to::

    epilogue(value, row, column, inside, n, e0, e1, e2, e3)    # row int64 [M, 1], column [1, N]; batches are rows, too
    prologue(value, row, column, inside, k, p0, p1, p2, p3)

``value`` and what is returned are float32. Pointers that are not used are any tensor's. Of a product with a gate the
other factor can be an argument of its own, after ``value``, and is then not multiplied before: ``GATED`` is 2.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def identity(value):
    """The value."""
    return value


@triton.jit
def relu(value):
    """``max(x, 0)``."""
    return tl.maximum(value, 0.0)


@triton.jit
def sigmoid(value):
    """``1 / (1 + exp(-x))``."""
    return 1.0 / (1.0 + tl.exp(-value))


@triton.jit
def silu(value):
    """``x sigmoid(x)``."""
    return value / (1.0 + tl.exp(-value))


@triton.jit
def gelu(value):
    """``x Φ(x)`` by the error function."""
    return 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))


@triton.jit
def gelu_tanh(value):
    """GELU by a hyperbolic tangent, which is ``2 sigmoid(2 x) - 1``."""
    inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    return value / (1.0 + tl.exp(-2.0 * inner))


@triton.jit
def nothing(value, row, column, inside, width, t0, t1, t2, t3):
    """No epilogue, no prologue."""
    return value


@triton.jit
def add(value, row, column, inside, n, e0, e1, e2, e3):
    """Add a tensor of the result's shape (a residual)."""
    return value + tl.load(e0 + row * n + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def multiply(value, row, column, inside, n, e0, e1, e2, e3):
    """Multiply by a tensor of the result's shape (a gate)."""
    return value * tl.load(e0 + row * n + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def rms_scale(value, row, column, inside, k, p0, p1, p2, p3):
    """RMS normalization of the operand: p0 [rows] float32, ``1 / sqrt(mean(x²) + ε)``; p1 [k], the weights."""
    scale = tl.load(p0 + row)
    weight = tl.load(p1 + column, mask=column < k, other=0.0).to(tl.float32)
    return value * scale * weight


@triton.jit
def layer_scale(value, row, column, inside, k, p0, p1, p2, p3):
    """Layer normalization of the operand: p0, p1 [rows] float32, mean and 1 / deviation; p2, p3 [k] weight and bias."""
    mean = tl.load(p0 + row)
    scale = tl.load(p1 + row)
    weight = tl.load(p2 + column, mask=column < k, other=0.0).to(tl.float32)
    bias = tl.load(p3 + column, mask=column < k, other=0.0).to(tl.float32)
    return tl.where(inside, (value - mean) * scale * weight + bias, 0.0)


@triton.jit
def silu_gate(value, row, column, inside, k, p0, p1, p2, p3):
    """``silu(x) p0``, p0 of the operand's shape."""
    return silu(value) * tl.load(p0 + row * k + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def finish(
    value, up, bias, y, e0, e1, e2, e3, first, at_m, at_n, rows, n,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """Bias, activation, gate and epilogue of a tile, and its store; ``first`` is the batch's first row."""
    in_n = at_n < n
    inside = (at_m < rows)[:, None] & in_n[None, :]
    if HAS_BIAS:
        value += tl.load(bias + at_n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    value = ACTIVATION(value)
    if GATED and HAS_BIAS:
        up += tl.load(bias + n + at_n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    # Rows past the last are the last, so that an epilogue may read what is one to a row without a mask.
    row = first + tl.minimum(at_m, rows - 1)[:, None].to(tl.int64)
    if GATED == 2:
        value = EPILOGUE(value, up, row, at_n[None, :], inside, n, e0, e1, e2, e3)
    else:
        if GATED:
            value *= up
        value = EPILOGUE(value, row, at_n[None, :], inside, n, e0, e1, e2, e3)
    tl.store(y + row * n + at_n[None, :], value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def finish_or_part(
    value, up, bias, y, e0, e1, e2, e3, batch, part, batches, at_m, at_n, rows, n,
    SPLITS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EPILOGUE: tl.constexpr,
):  # fmt: skip
    """:func:`finish`, or with several splits the store of a part in float32: y [SPLITS, 1 or 2, batches, rows, n]."""
    first = tl.cast(batch, tl.int64) * rows
    if SPLITS == 1:
        finish(value, up, bias, y, e0, e1, e2, e3, first, at_m, at_n, rows, n, GATED, HAS_BIAS, ACTIVATION, EPILOGUE)
    else:
        inside = (at_m < rows)[:, None] & (at_n < n)[None, :]
        size = tl.cast(batches, tl.int64) * rows * n
        at = (first + at_m[:, None].to(tl.int64)) * n + at_n[None, :]
        if GATED:
            tl.store(y + 2 * part * size + at, value, mask=inside)
            tl.store(y + (2 * part + 1) * size + at, up, mask=inside)
        else:
            tl.store(y + part * size + at, value, mask=inside)


@triton.jit
def reduce_kernel(
    parts, bias, y, e0, e1, e2, e3, rows, n,
    SPLITS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    EPILOGUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the parts [SPLITS, 1 or 2, rows, n] of a product in their order, and :func:`finish` it; no atomics."""
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (at_m < rows)[:, None] & (at_n < n)[None, :]
    size = tl.cast(rows, tl.int64) * n
    at = parts + at_m[:, None].to(tl.int64) * n + at_n[None, :]
    value = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = value
    for part in tl.static_range(SPLITS):
        if GATED:
            value += tl.load(at + 2 * part * size, mask=inside, other=0.0)
            up += tl.load(at + (2 * part + 1) * size, mask=inside, other=0.0)
        else:
            value += tl.load(at + part * size, mask=inside, other=0.0)
    first = tl.cast(0, tl.int64)
    finish(value, up, bias, y, e0, e1, e2, e3, first, at_m, at_n, rows, n, GATED, HAS_BIAS, ACTIVATION, EPILOGUE)


@triton.jit
def gate_kernel(
    both, y, e0, e1, e2, e3, rows, n, GATED: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gate and :func:`finish` a product in memory: both [rows, 2 n], the gate's channels first."""
    at_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_m = tl.program_id(1) + tl.arange(0, 1)
    start = both + at_m[:, None].to(tl.int64) * (2 * n) + at_n[None, :]
    inside = (at_n < n)[None, :]
    value = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + n, mask=inside, other=0.0).to(tl.float32)
    first = tl.cast(0, tl.int64)
    finish(value, up, y, y, e0, e1, e2, e3, first, at_m, at_n, rows, n, GATED, False, ACTIVATION, EPILOGUE)


ACTIVATIONS: dict[str, Any] = {
    "none": identity, "relu": relu, "sigmoid": sigmoid, "silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh,
}  # fmt: skip
"""Activations by name."""
