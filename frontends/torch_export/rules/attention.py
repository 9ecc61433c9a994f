"""Attention and embedding."""

from __future__ import annotations

import numpy as np
from onnx_ir import DataType, Value

from ....ir.symbolic import Dim
from ..builder import Builder, dims, fixed, rank
from ..registry import rule


@rule("aten.scaled_dot_product_attention.default")
def scaled_dot_product_attention(
    b: Builder,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p > 0:
        raise b.unsupported("attention dropout is active, the result is random; call model.eval() before compiling")
    if q.dtype not in (DataType.FLOAT, DataType.FLOAT16):
        return _decomposed(b, q, k, v, attn_mask, is_causal, scale)
    if scale is None and isinstance(dims(q)[-1], int):
        scale = float(fixed(dims(q)[-1]) ** -0.5)
    width = rank(q)
    if width != 4:
        q, k, v = (_four(b, x) for x in (q, k, v))
    if attn_mask is not None:
        if attn_mask.dtype != DataType.BOOL:
            attn_mask = b.cast(attn_mask, q.dtype)  # type: ignore[arg-type]
        if rank(attn_mask) == 3:
            attn_mask = _four(b, attn_mask)
        attn_mask = _full(b, attn_mask, dims(q)[2], dims(k)[2])
    shape = (*dims(q)[:3], dims(v)[3])
    result = b.op("Attention", q, k, v, attn_mask, shape=shape, is_causal=int(is_causal), scale=scale)
    return result if width == 4 else b.op("Reshape", result, b.sizes(b.shape), shape=b.shape)


def _four(b: Builder, x: Value) -> Value:
    """Four dimensions: one in front, or the leading ones merged."""
    if rank(x) == 4:
        return x
    if rank(x) == 3:
        return b.op("Unsqueeze", x, b.ints([0]), shape=[1, *dims(x)])
    if rank(x) == 2:
        return b.op("Unsqueeze", x, b.ints([0, 1]), shape=[1, 1, *dims(x)])
    raise b.unsupported(f"attention over {rank(x)} dimensions")


def _full(b: Builder, mask: Value, queries: Dim, keys: Dim) -> Value:
    """A mask of every query and key: the runtime broadcasts it over rows and heads alone."""
    have, wanted = dims(mask)[-2:], (queries, keys)
    if all(size != 1 or size == full for size, full in zip(have, wanted, strict=True)):
        return mask
    shape = (*dims(mask)[:-2], *(full if size == 1 else size for size, full in zip(have, wanted, strict=True)))
    return b.op("Expand", mask, b.sizes(shape), shape=shape)


def _decomposed(
    b: Builder, q: Value, k: Value, v: Value, mask: Value | None, is_causal: bool, scale: float | None
) -> Value:
    """softmax(q·kᵀ·scale + mask)·v, for element types without an attention kernel."""
    if dims(q)[:-2] != dims(k)[:-2]:
        raise b.unsupported(f"grouped-query attention in {q.dtype}")
    perm = [*range(rank(k) - 2), rank(k) - 1, rank(k) - 2]
    key_t = b.op("Transpose", k, shape=[dims(k)[i] for i in perm], perm=perm)
    shape = (*dims(q)[:-1], dims(k)[-2])
    factor = scale if scale is not None else float(fixed(dims(q)[-1]) ** -0.5)
    scores = b.op("Mul", b.op("MatMul", q, key_t, shape=shape), b.scalar(factor, q.dtype))
    low = b.scalar(-np.inf, q.dtype)
    if is_causal:
        ones = b.op("Expand", b.scalar(True, DataType.BOOL), b.sizes(shape[-2:]), shape=shape[-2:])
        mask = b.op("Trilu", ones, None, upper=0)
    if mask is not None:
        scores = b.op("Where", mask, scores, low) if mask.dtype == DataType.BOOL else b.op("Add", scores, mask)
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), v, shape=b.shape)


@rule("aten.embedding.default")
def embedding(
    b: Builder,
    weight: Value,
    indices: Value,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    return b.op("Gather", weight, indices, shape=b.shape, axis=0)
