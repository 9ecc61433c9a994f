"""Sorting and the largest elements."""

from __future__ import annotations

import onnx_ir
from onnx_ir import DataType, Value

from ..builder import Builder, dims, rank
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
