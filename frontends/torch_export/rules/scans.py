"""Running products and extremes: ONNX has the running sum alone.

An axis of n numbers takes ⌈log₂ n⌉ steps (Hillis and Steele 1986): each joins every number with the one ``step`` places
before it, and doubles ``step``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx_ir import DataType, Value

from ..builder import Builder, dims, fixed, rank
from ..dtypes import is_float
from ..registry import rule
from .reshaping import END


def _scanned(
    b: Builder, values: Sequence[Value], axis: int, join: Callable[[list[Value], list[Value]], list[Value]]
) -> list[Value]:
    """Each number joined with all before it; ``join`` is given what comes first, and what comes after."""
    current = list(values)
    size, step = fixed(dims(current[0])[axis]), 1
    while step < size:
        shape = list(dims(current[0]))
        shape[axis] = size - step
        first = list(shape)
        first[axis] = step
        at, where = b.ints([step]), b.ints([axis])
        before = [b.op("Slice", v, b.ints([0]), b.ints([size - step]), where, shape=shape) for v in current]
        after = [b.op("Slice", v, at, b.ints([END]), where, shape=shape) for v in current]
        kept = [b.op("Slice", v, b.ints([0]), at, where, shape=first) for v in current]
        joined = join(before, after)
        current = [
            b.op("Concat", k, j, shape=dims(v), axis=axis) for k, j, v in zip(kept, joined, current, strict=True)
        ]
        step *= 2
    return current


@rule("aten.cumprod.default")
def cumprod(b: Builder, x: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    x = b.cast(x, b.dtype)
    if not rank(x):
        return x
    return _scanned(b, [x], dim % rank(x), lambda first, then: [b.op("Mul", first[0], then[0])])[0]


@rule("aten.logcumsumexp.default")
def logcumsumexp(b: Builder, x: Value, dim: int) -> Value:
    if not rank(x):
        return x

    def join(first: list[Value], then: list[Value]) -> list[Value]:
        largest = b.op("Max", first[0], then[0])
        # Infinite ones would give inf − inf.
        finite = b.op("Where", b.op("IsInf", largest), b.scalar(0, x.dtype), largest)
        total = b.op("Add", *(b.op("Exp", b.op("Sub", v, finite)) for v in (first[0], then[0])))
        return [b.op("Add", b.op("Log", total), finite)]

    return _scanned(b, [x], dim % rank(x), join)[0]


@rule("aten.cummax.default")
def cummax(b: Builder, x: Value, dim: int) -> list[Value]:
    return _extremes(b, x, dim, "GreaterOrEqual")


@rule("aten.cummin.default")
def cummin(b: Builder, x: Value, dim: int) -> list[Value]:
    return _extremes(b, x, dim, "LessOrEqual")


def _extremes(b: Builder, x: Value, dim: int, better: str) -> list[Value]:
    """Running extremes and where they stand; the later one among equals, and NaN before all, as torch has it."""
    if x.dtype == DataType.BOOL:
        raise b.unsupported("a running extreme of truth values")
    if not rank(x):
        return [x, b.scalar(0, DataType.INT64)]
    axis = dim % rank(x)
    size = fixed(dims(x)[axis])
    shape: list[Any] = [1] * rank(x)
    shape[axis] = size
    places = b.constant(np.arange(size, dtype=np.int64).reshape(shape), "places")
    places = b.op("Expand", places, b.sizes(dims(x)), shape=dims(x))

    def join(first: list[Value], then: list[Value]) -> list[Value]:
        later = b.op(better, then[0], first[0])
        if is_float(x.dtype):
            known = b.op("Not", b.op("IsNaN", first[0]), dtype=DataType.BOOL)
            later = b.op("Or", b.op("And", later, known), b.op("IsNaN", then[0]))
        return [b.op("Where", later, after, before) for before, after in zip(first, then, strict=True)]

    return _scanned(b, [x, places], axis, join)
