"""Normalization and softmax."""

from __future__ import annotations

import math

import numpy as np
import torch
from onnx_ir import DataType, Value

from ..builder import Builder, dims, fixed, rank
from ..registry import rule


def _ones(b: Builder, shape: list[int], dtype: DataType | None) -> Value:
    assert dtype is not None
    return b.constant(np.ones(shape).astype(dtype.numpy()), "ones")


@rule("aten.layer_norm.default")
def layer_norm(
    b: Builder,
    x: Value,
    normalized_shape: list[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    weight = weight if weight is not None else _ones(b, list(normalized_shape), x.dtype)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return b.op("LayerNormalization", *inputs, shape=dims(x), axis=-len(normalized_shape), epsilon=float(eps))


@rule("aten.rms_norm.default")
def rms_norm(
    b: Builder, x: Value, normalized_shape: list[int], weight: Value | None = None, eps: float | None = None
) -> Value:
    weight = weight if weight is not None else _ones(b, list(normalized_shape), x.dtype)
    epsilon = torch.finfo(b.meta.dtype).eps if eps is None else eps
    return b.op("RMSNormalization", x, weight, shape=dims(x), axis=-len(normalized_shape), epsilon=float(epsilon))


@rule("aten.batch_norm.default")
def batch_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Value:
    if training or running_mean is None or running_var is None:
        raise b.unsupported("batch normalization is in training mode; call model.eval() before compiling")
    channels = fixed(dims(running_mean)[0])
    weight = weight if weight is not None else _ones(b, [channels], running_mean.dtype)
    if bias is None:
        bias = b.constant(np.zeros(channels, running_mean.dtype.numpy()), "zeros")  # type: ignore[union-attr]
    return b.op(
        "BatchNormalization", x, weight, bias, running_mean, running_var, shape=dims(x), epsilon=float(eps)
    )  # fmt: skip


@rule("aten._native_batch_norm_legit_no_training.default")
def batch_norm_for_inference(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> list[Value]:
    """The first of three results; nobody reads the others, which are empty."""
    return [batch_norm(b, x, weight, bias, running_mean, running_var, False, momentum, eps)]


@rule("aten._native_batch_norm_legit_functional.default")
def batch_norm_with_statistics(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    training: bool,
    momentum: float,
    eps: float,
) -> list[Value | None]:
    """Result, mean and reciprocal deviation of the batch, and both running statistics after it."""
    if not training:
        result = batch_norm(b, x, weight, bias, running_mean, running_var, False, momentum, eps)
        return [result, None, None, running_mean, running_var]
    if DataType.FLOAT not in (x.dtype, running_mean.dtype) or x.dtype != running_mean.dtype:
        raise b.unsupported(f"batch normalization with statistics of the batch in {x.dtype}")
    axes = b.ints([0, *range(2, rank(x))])
    column = [1, dims(x)[1], *[1] * (rank(x) - 2)]
    channels = [dims(x)[1]]
    centre = b.op("ReduceMean", x, axes, shape=column, keepdims=1)
    deviation = b.op("Sub", x, centre)
    variance = b.op("ReduceMean", b.op("Mul", deviation, deviation), axes, shape=column, keepdims=1)
    scale = b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.scalar(eps, x.dtype))))
    result = b.op("Mul", deviation, scale, shape=dims(x))
    for operator, factor in (("Mul", weight), ("Add", bias)):
        if factor is not None:
            result = b.op(operator, result, b.op("Reshape", factor, b.sizes(column), shape=column), shape=dims(x))
    mean, variance, scale = (b.op("Reshape", v, b.ints([-1]), shape=channels) for v in (centre, variance, scale))
    count = b.op("ReduceProd", b.sizes([d for i, d in enumerate(dims(x)) if i != 1]), shape=[], keepdims=0)
    n = b.cast(count, DataType.FLOAT)
    unbiased = b.op("Mul", variance, b.op("Div", n, b.op("Sub", n, b.scalar(1, DataType.FLOAT))))
    running = []
    for old, new in ((running_mean, mean), (running_var, unbiased)):
        kept = b.op("Mul", old, b.scalar(1 - momentum, old.dtype))
        running.append(b.op("Add", kept, b.op("Mul", new, b.scalar(momentum, old.dtype))))
    return [result, mean, scale, *running]


@rule("aten.instance_norm.default")
def instance_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Value:
    if not use_input_stats:
        return batch_norm(b, x, weight, bias, running_mean, running_var, False, momentum, eps)
    channels = fixed(dims(x)[1])
    weight = weight if weight is not None else _ones(b, [channels], x.dtype)
    if bias is None:
        bias = b.constant(np.zeros(channels, x.dtype.numpy()), "zeros")  # type: ignore[union-attr]
    return b.op("InstanceNormalization", x, weight, bias, shape=dims(x), epsilon=float(eps))


@rule("aten.group_norm.default")
def group_norm(
    b: Builder,
    x: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    # ONNX Runtime has no CPU kernel for GroupNormalization: normalize each group as one channel, then scale.
    groups, channels = num_groups, fixed(dims(x)[1])
    grouped = [dims(x)[0], groups, b.dimensions.unknown()]
    flat = b.op("Reshape", x, b.ints([0, groups, -1]), shape=grouped)
    zeros = b.constant(np.zeros(groups, x.dtype.numpy()), "zeros")  # type: ignore[union-attr]
    normal = b.op(
        "InstanceNormalization", flat, _ones(b, [groups], x.dtype), zeros, shape=grouped, epsilon=float(eps)
    )  # fmt: skip
    y = b.op("Reshape", normal, b.op("Shape", x, dtype=DataType.INT64, shape=[rank(x)]), shape=dims(x))
    column = [channels, *[1] * (rank(x) - 2)]
    if weight is not None:
        y = b.op("Mul", y, b.op("Reshape", weight, b.ints(column), shape=column))
    if bias is not None:
        y = b.op("Add", y, b.op("Reshape", bias, b.ints(column), shape=column))
    return y


@rule("aten.softmax.int", "aten._softmax.default", "aten.special_softmax.int")
def softmax(b: Builder, x: Value, dim: int, dtype: torch.dtype | bool | None = None) -> Value:
    return b.op("Softmax", b.cast(x, b.dtype), axis=dim)


@rule("aten._safe_softmax.default")
def safe_softmax(b: Builder, x: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    """Zero where everything is minus infinity."""
    x = b.cast(x, b.dtype)
    least = b.scalar(float("-inf"), b.dtype)
    masked = b.op("Equal", b.op("ReduceMax", x, b.ints([dim]), keepdims=1), least)
    return b.op("Where", masked, b.scalar(0.0, b.dtype), b.op("Softmax", x, axis=dim), shape=b.shape)


@rule("aten.log_softmax.int", "aten._log_softmax.default")
def log_softmax(b: Builder, x: Value, dim: int, dtype: torch.dtype | bool | None = None) -> Value:
    return b.op("LogSoftmax", b.cast(x, b.dtype), axis=dim)


@rule("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")
def vector_norm(
    b: Builder,
    x: Value,
    ord: float | None = 2,
    dim: list[int] | int | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:
    x = b.cast(x, b.dtype)
    axes = None if dim is None else b.ints([dim] if isinstance(dim, int) else list(dim))
    if dim is not None and not isinstance(dim, int) and not dim:
        axes = None
    known = {1: "ReduceL1", 2: "ReduceL2"}
    order = 2 if ord is None else ord
    if order == 0:
        nonzero = b.cast(b.cast(x, DataType.BOOL), b.dtype)
        return b.op("ReduceSum", nonzero, axes, shape=b.shape, keepdims=int(keepdim))
    if order in known:
        return b.op(known[int(order)], x, axes, shape=b.shape, keepdims=int(keepdim))
    magnitude = b.op("Abs", x)
    if math.isinf(order):
        return b.op("ReduceMax" if order > 0 else "ReduceMin", magnitude, axes, shape=b.shape, keepdims=int(keepdim))
    total = b.op("ReduceSum", b.op("Pow", magnitude, b.scalar(float(order), x.dtype)), axes, shape=b.shape,
                 keepdims=int(keepdim))  # fmt: skip
    return b.op("Pow", total, b.scalar(1 / float(order), x.dtype))


@rule("aten.norm.Scalar")
def norm_all(b: Builder, x: Value, p: float = 2) -> Value:
    return vector_norm(b, x, p)
