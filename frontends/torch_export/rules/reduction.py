"""Reductions and running sums."""

from __future__ import annotations

from typing import Any

from onnx_ir import DataType, Value

from ..builder import Builder, Number, dims, rank
from ..dtypes import is_float
from ..registry import rule

Axes = int | list[int] | None


def reduce(b: Builder, op_type: str, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    """A reduction over some axes, over all of them if none is named."""
    if not rank(x):
        return x
    axes = [dim] if isinstance(dim, int) else list(dim or [])
    axes = [axis % rank(x) for axis in axes]
    return b.op(op_type, x, b.ints(axes) if axes else None, dtype=x.dtype, shape=_reduced(x, axes, keepdim),
                keepdims=int(keepdim))  # fmt: skip


def _reduced(x: Value, axes: list[int], keepdim: bool) -> list[Any]:
    every = axes or list(range(rank(x)))
    if keepdim:
        return [1 if i in every else d for i, d in enumerate(dims(x))]
    return [d for i, d in enumerate(dims(x)) if i not in every]


@rule("aten.sum.dim_IntList", "aten.sum.default")
def sum(b: Builder, x: Value, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return reduce(b, "ReduceSum", b.cast(x, b.dtype), dim, keepdim)


@rule("aten.nansum.default")
def nansum(b: Builder, x: Value, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Value:
    x = b.cast(x, b.dtype)
    if is_float(x.dtype):
        x = b.op("Where", b.op("IsNaN", x), b.scalar(0, x.dtype), x)
    return reduce(b, "ReduceSum", x, dim, keepdim)


@rule("aten.mean.dim", "aten.mean.default")
def mean(b: Builder, x: Value, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return reduce(b, "ReduceMean", b.cast(x, b.dtype), dim, keepdim)


@rule("aten.prod.default")
def prod_all(b: Builder, x: Value, dtype: Any = None) -> Value:
    return reduce(b, "ReduceProd", b.cast(x, b.dtype))


@rule("aten.prod.dim_int")
def prod(b: Builder, x: Value, dim: int, keepdim: bool = False, dtype: Any = None) -> Value:
    return reduce(b, "ReduceProd", b.cast(x, b.dtype), dim, keepdim)


@rule("aten.amax.default", "aten.max.default")
def amax(b: Builder, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return reduce(b, "ReduceMax", x, dim, keepdim)


@rule("aten.amin.default", "aten.min.default")
def amin(b: Builder, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return reduce(b, "ReduceMin", x, dim, keepdim)


@rule("aten.max.dim")
def max_dim(b: Builder, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    return [reduce(b, "ReduceMax", x, dim, keepdim), _arg(b, "ArgMax", x, dim, keepdim)]


@rule("aten.min.dim")
def min_dim(b: Builder, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    return [reduce(b, "ReduceMin", x, dim, keepdim), _arg(b, "ArgMin", x, dim, keepdim)]


@rule("aten.argmax.default")
def argmax(b: Builder, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(b, "ArgMax", x, dim, keepdim)


@rule("aten.argmin.default")
def argmin(b: Builder, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(b, "ArgMin", x, dim, keepdim)


def _arg(b: Builder, op_type: str, x: Value, dim: int | None, keepdim: bool) -> Value:
    if x.dtype in (DataType.INT64, DataType.BOOL):
        # ONNX Runtime has kernels for int32 and floats; float64 holds integers up to 2^53.
        x = b.cast(x, DataType.INT32 if x.dtype == DataType.BOOL else DataType.DOUBLE)
    if dim is None:
        flat = b.op("Reshape", x, b.ints([-1]), shape=[b.dimensions.unknown()])
        return b.op(op_type, flat, dtype=DataType.INT64, shape=[], axis=0, keepdims=0)
    if not rank(x):
        return b.scalar(0, DataType.INT64)
    axis = dim % rank(x)
    return b.op(op_type, x, dtype=DataType.INT64, shape=_reduced(x, [axis], keepdim), axis=axis, keepdims=int(keepdim))


@rule("aten.any.default", "aten.any.dim", "aten.any.dims")
def any(b: Builder, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return _logical(b, "ReduceMax", x, dim, keepdim)


@rule("aten.all.default", "aten.all.dim", "aten.all.dims")
def all(b: Builder, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return _logical(b, "ReduceMin", x, dim, keepdim)


def _logical(b: Builder, op_type: str, x: Value, dim: Axes, keepdim: bool) -> Value:
    numbers = b.cast(b.cast(x, DataType.BOOL), DataType.INT32)
    return b.cast(reduce(b, op_type, numbers, dim, keepdim), DataType.BOOL)


@rule("aten.logsumexp.default")
def logsumexp(b: Builder, x: Value, dim: Axes, keepdim: bool = False) -> Value:
    return reduce(b, "ReduceLogSumExp", b.cast(x, b.dtype), dim, keepdim)


@rule("aten.var.correction", "aten.var.dim")
def var(
    b: Builder, x: Value, dim: Axes = None, unbiased: bool = True, keepdim: bool = False,
    correction: Number | None = None,
) -> Value:  # fmt: skip
    return variance(b, x, dim, keepdim, _correction(unbiased, correction))[0]


@rule("aten.std.correction", "aten.std.dim")
def std(
    b: Builder, x: Value, dim: Axes = None, unbiased: bool = True, keepdim: bool = False,
    correction: Number | None = None,
) -> Value:  # fmt: skip
    return b.op("Sqrt", var(b, x, dim, unbiased, keepdim, correction))


@rule("aten.var.default")
def var_of_all(b: Builder, x: Value, unbiased: bool = True) -> Value:
    return var(b, x, None, unbiased)


@rule("aten.std.default")
def std_of_all(b: Builder, x: Value, unbiased: bool = True) -> Value:
    return std(b, x, None, unbiased)


@rule("aten.var_mean.correction", "aten.var_mean.dim")
def var_mean(
    b: Builder, x: Value, dim: Axes = None, unbiased: bool = True, keepdim: bool = False,
    correction: Number | None = None,
) -> list[Value]:  # fmt: skip
    return list(variance(b, x, dim, keepdim, _correction(unbiased, correction)))


def _correction(unbiased: bool, correction: Number | None) -> float:
    return float(unbiased) if correction is None else float(correction)  # type: ignore[arg-type]


def variance(b: Builder, x: Value, dim: Axes, keepdim: bool, correction: float) -> tuple[Value, Value]:
    """Variance with ``correction`` taken off the count, and mean."""
    if 0 in dims(x):
        raise b.unsupported("the variance of nothing, which is NaN")
    if isinstance(dim, list) and not dim:
        dim = None
    axes = list(range(rank(x))) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = [axis % rank(x) for axis in axes]
    centre = reduce(b, "ReduceMean", x, axes, True)
    deviation = b.op("Sub", x, centre)
    result = reduce(b, "ReduceMean", b.op("Mul", deviation, deviation), axes, keepdim)
    if correction:
        count = b.op("ReduceProd", b.sizes([dims(x)[a] for a in axes]), dtype=DataType.INT64, shape=[], keepdims=0)
        assert x.dtype is not None
        n = b.cast(count, x.dtype)
        result = b.op("Mul", result, b.op("Div", n, b.op("Sub", n, b.scalar(correction, x.dtype))))
    average = centre if keepdim else b.op("Squeeze", centre, b.ints(axes), shape=_reduced(x, axes, False))
    return result, average


@rule("aten.cumsum.default")
def cumsum(b: Builder, x: Value, dim: int, dtype: Any = None) -> Value:
    if not rank(x):
        return b.cast(x, b.dtype)
    return b.op("CumSum", b.cast(x, b.dtype), b.ints(dim % rank(x)), shape=dims(x))


@rule("aten.numel.default", "aten.sym_numel.default")
def numel(b: Builder, x: Value) -> Any:
    return b.meta


@rule("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def count_nonzero(b: Builder, x: Value, dim: Axes = None) -> Value:
    return reduce(b, "ReduceSum", b.cast(b.cast(x, DataType.BOOL), DataType.INT64), dim)
