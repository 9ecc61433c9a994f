"""Diagonals of matrices."""

from __future__ import annotations

import numpy as np
from onnx_ir import Value

from ..builder import Builder, dims, fixed, rank
from ..registry import rule
from .reshaping import reshape, transpose


@rule("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(b: Builder, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """The diagonal of two axes, put last."""
    first, second = dim1 % rank(x), dim2 % rank(x)
    rest = [axis for axis in range(rank(x)) if axis not in (first, second)]
    rows, columns = fixed(dims(x)[first]), fixed(dims(x)[second])
    x = transpose(b, x, [*rest, first, second])
    count = fixed(b.shape[-1])
    start = max(offset, 0) + max(-offset, 0) * columns
    places = b.constant(start + np.arange(count, dtype=np.int64) * (columns + 1), "diagonal")
    flat = reshape(b, x, [*dims(x)[:-2], rows * columns])
    return b.op("Gather", flat, places, shape=b.shape, axis=rank(flat) - 1)


@rule("aten.linalg_diagonal.default")
def linalg_diagonal(b: Builder, x: Value, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    return diagonal(b, x, offset, dim1, dim2)


@rule("aten.trace.default")
def trace(b: Builder, x: Value) -> Value:
    rows, columns = (fixed(d) for d in dims(x))
    flat = reshape(b, x, [rows * columns])
    places = b.constant(np.arange(min(rows, columns), dtype=np.int64) * (columns + 1), "diagonal")
    numbers = b.op("Gather", flat, places, shape=[min(rows, columns)], axis=0)
    return b.op("ReduceSum", b.cast(numbers, b.dtype), b.ints([0]), shape=(), keepdims=0)


@rule("aten.diag.default")
def diag(b: Builder, x: Value, diagonal: int = 0) -> Value:
    """The diagonal of a matrix, or the matrix with this diagonal."""
    if rank(x) == 2:
        return _of_matrix(b, x, diagonal)
    size, count = fixed(b.shape[0]), fixed(dims(x)[0])
    places = (max(-diagonal, 0) + np.arange(count)) * size + max(diagonal, 0) + np.arange(count)
    zeros = b.constant(np.zeros(size * size, b.dtype.numpy()), "zeros")
    rows = b.constant(places.astype(np.int64)[:, None], "diagonal")
    return reshape(b, b.op("ScatterND", zeros, rows, x, shape=[size * size]), b.shape)


def _of_matrix(b: Builder, x: Value, offset: int) -> Value:
    return diagonal(b, x, offset)
