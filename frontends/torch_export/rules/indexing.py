"""Reading and writing by index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx_ir import DataType, Value

from ..builder import Builder, Number, broadcast, dims, rank
from ..dtypes import is_float
from ..expressions import Size
from ..registry import rule
from ..views import select_scatter as write_select
from ..views import slice_scatter as write_slice
from .operands import Operand, operand
from .reshaping import expand_to, transpose


@rule("aten.take_along_dim.default")
def take_along_dim(b: Builder, x: Value, indices: Value, dim: int | None = None) -> Value:
    if dim is None:
        raise b.unsupported("take_along_dim without an axis")
    axis = dim % rank(x)
    common = list(broadcast([(*dims(x)[:axis], 1, *dims(x)[axis + 1 :]), dims(indices)]))
    common[axis] = dims(indices)[axis]
    whole = [*common[:axis], dims(x)[axis], *common[axis + 1 :]]
    return gather(b, expand_to(b, x, whole), axis, expand_to(b, indices, common))


@rule("aten.gather.default")
def gather(b: Builder, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    if not rank(x):
        return x
    return b.op("GatherElements", x, index, shape=dims(index), axis=dim % rank(x))


@rule("aten.index_select.default")
def index_select(b: Builder, x: Value, dim: int, index: Value) -> Value:
    if not rank(x):
        return x
    index = b.op("Reshape", index, b.ints([-1]), shape=dims(index) or (1,))
    return b.op("Gather", x, index, shape=b.shape, axis=dim % rank(x))


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(b: Builder, x: Value, indices: list[Value | None]) -> Value:
    places = _integers(b, indices)
    axes = [axis for axis, place in enumerate(places) if place is not None]
    if len(axes) == 1:
        place = places[axes[0]]
        assert place is not None
        return b.op("Gather", x, place, shape=b.shape, axis=axes[0])
    stacked = _stacked(b, [p for p in places if p is not None])
    rest = [axis for axis in range(rank(x)) if axis not in axes]
    x = transpose(b, x, [*axes, *rest])
    index_rank = rank(stacked) - 1
    shape = (*dims(stacked)[:-1], *dims(x)[len(axes) :])
    result = b.op("GatherND", x, stacked, shape=shape)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    if adjacent and axes[0] > 0:
        # The dimensions of the index stand where the indexed axes stood.
        before = list(range(index_rank, index_rank + axes[0]))
        after = list(range(index_rank + axes[0], rank(result)))
        result = transpose(b, result, [*before, *range(index_rank), *after])
    return result


def _integers(b: Builder, indices: Sequence[Value | None]) -> list[Value | None]:
    """Index tensors, with each mask replaced by the positions where it is true."""
    places: list[Value | None] = []
    for place in indices:
        if place is None or place.dtype not in (DataType.BOOL, DataType.UINT8):
            places.append(place if place is None else b.cast(place, DataType.INT64))
            continue
        count = b.dimensions.unknown()
        found = b.op("NonZero", place, dtype=DataType.INT64, shape=[rank(place), count])
        for axis in range(rank(place)):
            places.append(b.op("Gather", found, b.ints(axis), shape=[count], axis=0))
        if isinstance(b.meta, torch.Tensor):
            for size in b.meta.shape:
                first = places[-1]
                assert first is not None
                b.bind(size, partial(b.op, "Shape", first, dtype=DataType.INT64, shape=[1]))
    return places


def _is_plain_mask(indices: Sequence[Value | None], values: Value) -> bool:
    """Whether one number goes wherever one mask is true."""
    return (
        len(indices) == 1
        and indices[0] is not None
        and indices[0].dtype == DataType.BOOL
        and all(d == 1 for d in dims(values))
    )


def _stacked(b: Builder, places: Sequence[Value]) -> Value:
    """Index tensors broadcast against each other and stacked along a new last axis."""
    common = broadcast([dims(p) for p in places])
    columns = []
    for place in places:
        whole = expand_to(b, place, common)
        columns.append(b.op("Unsqueeze", whole, b.ints([len(common)]), shape=[*common, 1]))
    if len(columns) == 1:
        return columns[0]
    return b.op("Concat", *columns, shape=[*common, len(columns)], axis=len(common))


@rule("aten.index_put.default", "aten._index_put_impl.default", "aten._unsafe_index_put.default")
def index_put(
    b: Builder, x: Value, indices: list[Value | None], values: Value, accumulate: bool = False, unsafe: bool = False
) -> Value:
    values = b.cast(values, b.dtype)
    single = indices[0] if indices else None
    if single is not None and _is_plain_mask(indices, values) and not accumulate:
        mask = single
        if rank(mask) < rank(x):
            extra = rank(x) - rank(mask)
            mask = b.op("Unsqueeze", mask, b.ints(list(range(rank(mask), rank(x)))),
                            shape=[*dims(mask), *[1] * extra])  # fmt: skip
        return b.op("Where", mask, values, x, shape=dims(x))
    places = _integers(b, indices)
    axes = [axis for axis, place in enumerate(places) if place is not None]
    rest = [axis for axis in range(rank(x)) if axis not in axes]
    perm = [*axes, *rest]
    stacked = _stacked(b, [p for p in places if p is not None])
    moved = transpose(b, x, perm)
    target = (*dims(stacked)[:-1], *dims(moved)[len(axes) :])
    if axes[0] > 0 and rank(values) > len(rest):
        count = rank(stacked) - 1
        if axes == list(range(axes[0], axes[0] + len(axes))) and rank(values) == count + len(rest):
            order = [*range(axes[0], axes[0] + count), *range(axes[0]), *range(axes[0] + count, rank(values))]
            values = transpose(b, values, order)
    if any(isinstance(d, int) or d.value is not None for d in target) and dims(values) != tuple(target):
        shape = b.op("Shape", stacked, dtype=DataType.INT64, shape=[rank(stacked) - 1], end=-1)
        if rest:
            tail = b.op("Shape", moved, dtype=DataType.INT64, shape=[len(rest)], start=len(axes))
            shape = b.op("Concat", shape, tail, shape=[len(target)], axis=0)
        values = b.op("Expand", values, shape, shape=target)
    result = b.op("ScatterND", moved, stacked, values, shape=dims(moved), reduction="add" if accumulate else None)
    return transpose(b, result, [perm.index(i) for i in range(rank(x))])


@rule("aten.scatter.src")
def scatter(b: Builder, x: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(b, x, dim, index, src)


@rule("aten.scatter.value")
def scatter_value(b: Builder, x: Value, dim: int, index: Value, value: Number) -> Value:
    return _scatter(b, x, dim, index, expand_to(b, b.scalar(value, x.dtype), dims(index)))


@rule("aten.scatter_add.default")
def scatter_add(b: Builder, x: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(b, x, dim, index, src, "add")


@rule("aten.scatter_reduce.two")
def scatter_reduce(
    b: Builder, x: Value, dim: int, index: Value, src: Value, reduce: str, include_self: bool = True
) -> Value:
    if reduce not in _REDUCTIONS:
        raise b.unsupported(f"scatter_reduce with reduce={reduce!r}")
    if not rank(x):
        column = [b.op("Reshape", v, b.ints([1]), shape=(1,)) for v in (x, index, src)]
        return b.op("Squeeze", _reduced(b, column[0], 0, column[1], column[2], reduce, include_self), shape=())
    return _reduced(b, x, dim, index, src, reduce, include_self)


@rule("aten.scatter.reduce")
def scatter_reduce_src(b: Builder, x: Value, dim: int, index: Value, src: Value, *, reduce: str) -> Value:
    return _scatter(b, x, dim, index, src, {"add": "add", "multiply": "mul"}[reduce])


@rule("aten.scatter.value_reduce")
def scatter_reduce_value(b: Builder, x: Value, dim: int, index: Value, value: Number, *, reduce: str) -> Value:
    return scatter_reduce_src(b, x, dim, index, expand_to(b, b.scalar(value, x.dtype), dims(index)), reduce=reduce)


_REDUCTIONS = {"sum": "add", "prod": "mul", "mean": "add", "amax": "max", "amin": "min"}


def _reduced(b: Builder, x: Value, dim: int, index: Value, src: Value, reduce: str, include_self: bool) -> Value:
    """``x`` with what is scattered reduced into it; without it where anything is, if ``include_self`` is not set."""
    if reduce == "mean" and not is_float(x.dtype):
        raise b.unsupported("a mean of integers")
    start = x
    one = expand_to(b, b.scalar(1, x.dtype), dims(index))
    if not include_self:
        hit = _scatter(b, b.op("Sub", x, x), dim, index, one)
        # x − x is NaN where x is infinite: compared with 1 instead of 0.
        limits = np.finfo if is_float(x.dtype) else np.iinfo
        assert x.dtype is not None
        bound = limits(x.dtype.numpy())
        infinite = is_float(x.dtype)
        neutral = {"sum": 0, "mean": 0, "prod": 1, "amax": -np.inf if infinite else bound.min,
                   "amin": np.inf if infinite else bound.max}[reduce]  # fmt: skip
        start = b.op("Where", b.op("Equal", hit, b.scalar(1, x.dtype)), b.scalar(neutral, x.dtype), x)
    result = _scatter(b, start, dim, index, src, _REDUCTIONS[reduce])
    if reduce != "mean":
        return result
    zero = b.op("Mul", expand_to(b, b.scalar(1, x.dtype), dims(x)), b.scalar(0, x.dtype))
    count = _scatter(b, zero, dim, index, one, "add")
    count = b.op("Add", count, b.scalar(1, x.dtype)) if include_self else b.op("Max", count, b.scalar(1, x.dtype))
    return b.op("Div", result, count)


@rule("aten.index_reduce.default")
def index_reduce(
    b: Builder, x: Value, dim: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    if not rank(x):
        raise b.unsupported("index_reduce of a number")
    axis = dim % rank(x)
    column = b.op("Reshape", index, b.ints([-1 if i == axis else 1 for i in range(rank(x))]),
                  shape=[dims(source)[axis] if i == axis else 1 for i in range(rank(x))])  # fmt: skip
    return _reduced(b, x, dim, expand_to(b, column, dims(source)), source, reduce, include_self)


@rule("aten.put.default")
def put(b: Builder, x: Value, index: Value, source: Value, accumulate: bool = False) -> Value:
    flat = b.op("Reshape", x, b.ints([-1]), shape=[b.dimensions.unknown()])
    places = b.op("Reshape", index, b.ints([-1, 1]), shape=[b.dimensions.unknown(), 1])
    values = b.op("Reshape", source, b.ints([-1]), shape=[b.dimensions.unknown()])
    result = b.op("ScatterND", flat, places, values, shape=dims(flat), reduction="add" if accumulate else None)
    return b.op("Reshape", result, b.sizes(dims(x)), shape=dims(x))


def _scatter(b: Builder, x: Value, dim: int, index: Value, src: Value, reduction: str | None = None) -> Value:
    if dims(src) != dims(index):
        # torch takes the leading part of a larger source.
        starts = b.ints([0] * rank(index))
        src = b.op("Slice", src, starts, b.sizes(dims(index)), b.ints(list(range(rank(index)))), shape=dims(index))
    return b.op(
        "ScatterElements", x, index, b.cast(src, b.dtype), shape=dims(x), axis=dim % rank(x), reduction=reduction
    )  # fmt: skip


@rule("aten.index_copy.default")
def index_copy(b: Builder, x: Value, dim: int, index: Value, source: Value) -> Value:
    if not rank(x):
        return b.op("Reshape", source, b.ints([]), shape=())
    return _rows(b, x, dim, index, source)


@rule("aten.index_add.default")
def index_add(b: Builder, x: Value, dim: int, index: Value, source: Value, alpha: Number = 1) -> Value:
    if alpha != 1:
        source = b.op("Mul", source, b.scalar(alpha, source.dtype))
    if not rank(x):
        return b.op("Add", x, b.op("ReduceSum", source, shape=(), keepdims=0))
    return _rows(b, x, dim, index, source, "add")


@rule("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(b: Builder, x: Value, dim: int, index: Value, value: Operand) -> Value:
    if not rank(x):
        return operand(b, value, b.dtype)
    axis = dim % rank(x)
    shape = list(dims(x))
    shape[axis] = dims(index)[0] if rank(index) else 1
    return _rows(b, x, dim, index, expand_to(b, operand(b, value, b.dtype), shape))


def _rows(b: Builder, x: Value, dim: int, index: Value, source: Value, reduction: str | None = None) -> Value:
    """Write whole slices along one axis."""
    axis = dim % rank(x)
    perm = [axis, *(i for i in range(rank(x)) if i != axis)]
    back = [perm.index(i) for i in range(rank(x))]
    rows = b.op("Reshape", index, b.ints([-1, 1]), shape=[*(dims(index) or (1,)), 1])
    moved = transpose(b, x, perm)
    if not rank(source):
        source = b.op("Reshape", source, b.ints([1] * rank(x)), shape=[1] * rank(x))
    result = b.op("ScatterND", moved, rows, transpose(b, source, perm), shape=dims(moved), reduction=reduction)
    return transpose(b, result, back)


@rule("aten.select_scatter.default")
def select_scatter(b: Builder, x: Value, src: Value, dim: int, index: Size) -> Value:
    return write_select(b, x, src, b.meta, dim, index)


@rule("aten.slice_scatter.default")
def slice_scatter(
    b: Builder, x: Value, src: Value, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Value:
    return write_slice(b, x, src, b.meta, dim, start, end, step)


@rule("aten.masked_scatter.default")
def masked_scatter(b: Builder, x: Value, mask: Value, source: Value) -> Value:
    whole = expand_to(b, mask, dims(x))
    count = b.dimensions.unknown()
    places = b.op("Transpose", b.op("NonZero", whole, dtype=DataType.INT64, shape=[rank(x), count]),
                  shape=[count, rank(x)], perm=[1, 0])  # fmt: skip
    flat = b.op("Reshape", b.cast(source, b.dtype), b.ints([-1]), shape=[count])
    size = b.op("Shape", places, dtype=DataType.INT64, shape=[1], end=1)
    flat = b.op("Slice", flat, b.ints([0]), size, b.ints([0]), shape=[count])
    return b.op("ScatterND", x, places, flat, shape=dims(x))


@rule("aten.nonzero.default")
def nonzero(b: Builder, x: Value) -> Value:
    found = b.op("NonZero", x, dtype=DataType.INT64, shape=b.shape[::-1])
    b.bind(b.meta.shape[0], lambda: b.op("Shape", found, dtype=DataType.INT64, shape=[1], start=1))
    return transpose(b, found, [1, 0])


@rule("aten.masked_select.default")
def masked_select(b: Builder, x: Value, mask: Value) -> Value:
    common = broadcast([dims(x), dims(mask)])
    return index(b, expand_to(b, x, common), [expand_to(b, mask, common)])


@rule("aten.bucketize.Tensor")
def bucketize(b: Builder, x: Value, boundaries: Value, out_int32: bool = False, right: bool = False) -> Value:
    column = b.op("Unsqueeze", x, b.ints([rank(x)]), shape=[*dims(x), 1])
    past = b.op("GreaterOrEqual" if right else "Greater", column, b.cast(boundaries, x.dtype))  # type: ignore[arg-type]
    return b.op("ReduceSum", b.cast(past, b.dtype), b.ints([-1]), shape=b.shape, keepdims=0)


@rule("aten.searchsorted.Tensor")
def searchsorted(
    b: Builder, boundaries: Value, x: Value, *, out_int32: bool = False, right: bool = False, side: str | None = None,
    sorter: Value | None = None,
) -> Value:  # fmt: skip
    """How many of the boundaries, sorted along the last axis, are less than each value (or equal to it, ``right``)."""
    if sorter is not None:
        boundaries = gather(b, boundaries, -1, sorter)
    column = b.op("Unsqueeze", x, b.ints([rank(x)]), shape=[*dims(x), 1])
    row = b.cast(boundaries, x.dtype)  # type: ignore[arg-type]
    if rank(boundaries) > 1:
        row = b.op("Unsqueeze", row, b.ints([rank(row) - 1]), shape=[*dims(row)[:-1], 1, dims(row)[-1]])
    right = right or side == "right"
    past = b.op("GreaterOrEqual" if right else "Greater", column, row)
    return b.op("ReduceSum", b.cast(past, b.dtype), b.ints([-1]), shape=b.shape, keepdims=0)


@rule("aten.searchsorted.Scalar")
def searchsorted_number(b: Builder, boundaries: Value, x: Number, **options: Any) -> Value:
    return searchsorted(b, boundaries, b.scalar(x, boundaries.dtype), **options)


@rule("aten.histc.default")
def histc(b: Builder, x: Value, bins: int = 100, min: float = 0, max: float = 0) -> Value:
    """Counts per bin; the last bin holds its upper limit too."""
    if min == max:
        raise b.unsupported("histc without limits")
    width = (float(max) - float(min)) / bins
    flat = b.cast(b.op("Reshape", x, b.ints([-1]), shape=[b.dimensions.unknown()]), DataType.FLOAT)
    position = b.op("Floor", b.op("Div", b.op("Sub", flat, b.scalar(float(min), DataType.FLOAT)),
                                  b.scalar(width, DataType.FLOAT)))  # fmt: skip
    at_end = b.op("Equal", flat, b.scalar(float(max), DataType.FLOAT))
    position = b.op("Where", at_end, b.scalar(bins - 1, DataType.FLOAT), position)
    column = b.op("Unsqueeze", position, b.ints([1]), shape=[*dims(position), 1])
    hits = b.op("Equal", column, b.constant(np.arange(bins, dtype=np.float32), "bins"))
    return b.op("ReduceSum", b.cast(hits, b.dtype), b.ints([0]), shape=[bins], keepdims=0)
