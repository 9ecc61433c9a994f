"""Sorting and the largest elements."""

from __future__ import annotations

import math

import onnx_ir
from onnx_ir import DataType, Value

from ..builder import Builder, dims, fixed, rank
from ..dtypes import is_float
from ..expressions import Size
from ..registry import rule


def top(b: Builder, x: Value, k: Value, axis: int, largest: bool, shape: tuple[object, ...]) -> list[Value]:
    """The largest (or smallest) ``k`` along an axis, in order, and where they stood."""
    source = b.cast(x, DataType.INT32) if x.dtype == DataType.BOOL else x
    values, indices = b.ops("TopK", [source, k], 2, {"axis": axis, "largest": int(largest), "sorted": 1})
    assert source.dtype is not None and x.dtype is not None
    values.type, values.shape = onnx_ir.TensorType(source.dtype), onnx_ir.Shape(shape)  # type: ignore[arg-type]
    indices.type, indices.shape = onnx_ir.TensorType(DataType.INT64), onnx_ir.Shape(shape)  # type: ignore[arg-type]
    return [b.cast(values, x.dtype), indices]


@rule("aten.topk.default")
def topk(
    b: Builder, x: Value, k: Size, dim: int = -1, largest: bool = True, sorted: bool = True
) -> list[Value]:  # fmt: skip
    shape = b.dimensions.shape(b.meta[0].shape)
    return top(b, x, b.index(k), dim % rank(x), largest, shape)


@rule("aten.sort.default")
def sort(b: Builder, x: Value, dim: int = -1, descending: bool = False) -> list[Value]:
    axis = dim % rank(x)
    return top(b, x, b.size(dims(x)[axis]), axis, descending, dims(x))


@rule("aten.sort.stable")
def sort_stable(
    b: Builder, x: Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> list[Value]:  # fmt: skip
    # TopK puts the lower index first among equals, which is what stable means.
    return sort(b, x, dim, descending)


@rule("aten.argsort.default")
def argsort(b: Builder, x: Value, dim: int = -1, descending: bool = False) -> Value:
    return sort(b, x, dim, descending)[1]


@rule("aten.argsort.stable")
def argsort_stable(b: Builder, x: Value, stable: bool = True, dim: int = -1, descending: bool = False) -> Value:
    return sort(b, x, dim, descending)[1]


@rule("aten.msort.default")
def msort(b: Builder, x: Value) -> Value:
    return sort(b, x, 0)[0] if rank(x) else x


@rule("aten.kthvalue.default")
def kthvalue(b: Builder, x: Value, k: Size, dim: int = -1, keepdim: bool = False) -> list[Value]:
    """The k-th smallest number along an axis, and where it stands."""
    if not rank(x):
        return [x, b.scalar(0, DataType.INT64)]
    axis = dim % rank(x)
    if not isinstance(k, int):
        raise b.unsupported("kthvalue of a k that varies")
    shape = [*dims(x)[:axis], k, *dims(x)[axis + 1 :]]
    smallest = top(b, x, b.ints([k]), axis, False, tuple(shape))
    wanted = b.ints([k - 1] if keepdim else k - 1)
    result = [1] if keepdim else []
    shape = [*dims(x)[:axis], *result, *dims(x)[axis + 1 :]]
    return [b.op("Gather", part, wanted, shape=shape, axis=axis) for part in smallest]


@rule("aten.median.dim")
def median(b: Builder, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    """The lower one of two in the middle; NaN and its place if there is any."""
    if not rank(x):
        return [x, b.scalar(0, DataType.INT64)]
    axis = dim % rank(x)
    value, place = kthvalue(b, x, (fixed(dims(x)[axis]) + 1) // 2, axis, keepdim)
    if not is_float(x.dtype):
        return [value, place]
    unknown = b.cast(b.op("IsNaN", x), DataType.FLOAT)
    first = b.op("ArgMax", unknown, dtype=DataType.INT64, shape=dims(place), axis=axis, keepdims=int(keepdim))
    found = b.op("ReduceMax", unknown, b.ints([axis]), shape=dims(value), keepdims=int(keepdim))
    some = b.cast(found, DataType.BOOL)
    return [b.op("Where", some, b.scalar(float("nan"), x.dtype), value), b.op("Where", some, first, place)]


@rule("aten.median.default")
def median_of_all(b: Builder, x: Value) -> Value:
    count = math.prod(fixed(d) for d in dims(x))
    return median(b, b.op("Reshape", x, b.ints([-1]), shape=[count]), 0)[0]
