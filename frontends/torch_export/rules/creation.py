"""Tensors from nothing: constants, ranges, masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx_ir import DataType, Value

from ..builder import Builder, Number, dims, fixed, rank
from ..dtypes import is_float
from ..registry import rule


def filled(b: Builder, number: Number | Value) -> Value:
    """The current result filled with one number."""
    value = b.cast(number, b.dtype) if isinstance(number, Value) else b.scalar(number, b.dtype)
    return value if not b.shape else b.op("Expand", value, b.sizes(b.shape), shape=b.shape)


@rule("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default", "aten.empty.memory_format",
      "aten.empty_like.default", "aten.new_empty.default", "aten.empty_strided.default",
      "aten.new_empty_strided.default", "aten.empty_permuted.default")  # fmt: skip
def zeros(b: Builder, *_: Any, **__: Any) -> Value:
    return filled(b, 0)


@rule("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default")
def ones(b: Builder, *_: Any, **__: Any) -> Value:
    return filled(b, 1)


@rule("aten.full.default", "aten.full_like.default", "aten.new_full.default")
def full(b: Builder, x: Any, fill_value: Any, *_: Any, **__: Any) -> Value:
    # new_full(x, size, fill_value) has the number third.
    return filled(b, _[0] if isinstance(fill_value, list) else fill_value)


@rule("aten.scalar_tensor.default")
def scalar_tensor(b: Builder, s: Number, **_: Any) -> Value:
    return filled(b, s)


@rule("aten.arange.default")
def arange(b: Builder, end: Number, **_: Any) -> Value:
    return arange_step(b, 0, end, 1)


@rule("aten.arange.start")
def arange_start(b: Builder, start: Number, end: Number, **_: Any) -> Value:
    return arange_step(b, start, end, 1)


@rule("aten.arange.start_step")
def arange_step(b: Builder, start: Number, end: Number, step: Number = 1, **_: Any) -> Value:
    dtype = b.dtype
    inner = dtype if dtype in (DataType.FLOAT, DataType.DOUBLE) else DataType.INT64
    if any(isinstance(n, float) for n in (start, end, step)) and not is_float(dtype):
        inner = DataType.DOUBLE
    if is_float(dtype) and inner is DataType.INT64:
        inner = DataType.FLOAT
    limits = [b.scalar(n, inner) for n in (start, end, step)]
    return b.cast(b.op("Range", *limits, dtype=inner, shape=b.shape), dtype)


@rule("aten.linspace.default")
def linspace(b: Builder, start: float, end: float, steps: int, **_: Any) -> Value:
    if not isinstance(start, (int, float)) or not isinstance(end, (int, float)) or not isinstance(steps, int):
        raise b.unsupported("linspace of symbolic limits")
    return b.constant(np.linspace(start, end, steps).astype(b.dtype.numpy()), "linspace")


@rule("aten.eye.default", "aten.eye.m")
def eye(b: Builder, n: int, m: int | None = None, **_: Any) -> Value:
    rows, columns = (fixed(d) for d in b.shape)
    return b.constant(np.eye(rows, columns).astype(b.dtype.numpy()), "eye")


@rule("aten.tril.default")
def tril(b: Builder, x: Value, diagonal: int = 0) -> Value:
    return _triangle(b, x, diagonal, upper=0)


@rule("aten.triu.default")
def triu(b: Builder, x: Value, diagonal: int = 0) -> Value:
    return _triangle(b, x, diagonal, upper=1)


def _triangle(b: Builder, x: Value, diagonal: int, upper: int) -> Value:
    k = b.ints(diagonal) if isinstance(diagonal, int) else b.scalar(diagonal, DataType.INT64)
    supported = (DataType.FLOAT, DataType.DOUBLE, DataType.INT64, DataType.BOOL)
    inner = x.dtype if x.dtype in supported else DataType.INT64
    assert inner is not None and x.dtype is not None
    return b.cast(b.op("Trilu", b.cast(x, inner), k, shape=dims(x), upper=upper), x.dtype)


@rule("aten.one_hot.default")
def one_hot(b: Builder, x: Value, num_classes: int = -1) -> Value:
    if not isinstance(num_classes, int) or num_classes < 0:
        raise b.unsupported("one_hot without a number of classes")
    column = b.op("Unsqueeze", x, b.ints([rank(x)]), shape=[*dims(x), 1])
    classes = b.constant(np.arange(num_classes, dtype=np.int64), "classes")
    return b.cast(b.op("Equal", column, classes), DataType.INT64)
