"""Convolution, pooling, resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir import DataType, Value

from ..builder import Builder, dims, fixed, rank
from ..registry import rule


def _many(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _batched(b: Builder, x: Value, spatial: int) -> tuple[Value, bool]:
    """``x`` with a batch dimension, and whether one had to be added."""
    if rank(x) == spatial + 2:
        return x, False
    return b.op("Unsqueeze", x, b.ints([0]), shape=[1, *dims(x)]), True


def _unbatched(b: Builder, y: Value, added: bool) -> Value:
    return b.op("Squeeze", y, b.ints([0]), shape=dims(y)[1:]) if added else y


@rule("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default",
      "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")  # fmt: skip
def conv(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    n = rank(weight) - 2
    dilations = _many(dilation, n)
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [d * (fixed(k) - 1) for d, k in zip(dilations, dims(weight)[2:], strict=True)]
        pads = [t // 2 for t in totals] + [t - t // 2 for t in totals]
    else:
        pads = _many(padding, n) * 2
    x, added = _batched(b, x, n)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    shape = (1, *b.shape) if added else b.shape
    y = b.op("Conv", *inputs, shape=shape, strides=_many(stride, n), pads=pads, dilations=dilations, group=groups,
             kernel_shape=[fixed(k) for k in dims(weight)[2:]])  # fmt: skip
    return _unbatched(b, y, added)


@rule("aten.convolution.default")
def convolution(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Value:
    if transposed:
        return conv_transpose(b, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(b, x, weight, bias, stride, padding, dilation, groups)


@rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    n = rank(weight) - 2
    x, added = _batched(b, x, n)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    shape = (1, *b.shape) if added else b.shape
    y = b.op("ConvTranspose", *inputs, shape=shape, strides=_many(stride, n), pads=_many(padding, n) * 2,
             output_padding=_many(output_padding, n), dilations=_many(dilation, n), group=groups,
             kernel_shape=[fixed(k) for k in dims(weight)[2:]])  # fmt: skip
    return _unbatched(b, y, added)


@rule("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(
    b: Builder,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    n = _pool_rank(b)
    kernel = _many(kernel_size, n)
    x, added = _batched(b, x, n)
    shape = (1, *b.shape) if added else b.shape
    y = b.op("MaxPool", x, shape=shape, kernel_shape=kernel, strides=_many(stride, n) if stride else kernel,
             pads=_many(padding, n) * 2, dilations=_many(dilation, n), ceil_mode=int(ceil_mode))  # fmt: skip
    return _unbatched(b, y, added)


@rule("aten.max_pool1d_with_indices.default", "aten.max_pool2d_with_indices.default",
      "aten.max_pool3d_with_indices.default")  # fmt: skip
def max_pool_with_indices(
    b: Builder,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> list[Value]:
    """Largest numbers, and where in its image each stood."""
    n = _pool_rank(b)
    kernel = _many(kernel_size, n)
    attributes = {
        "kernel_shape": kernel, "strides": _many(stride, n) if stride else kernel, "pads": _many(padding, n) * 2,
        "dilations": _many(dilation, n), "ceil_mode": int(ceil_mode),
    }  # fmt: skip
    return _maxima(b, x, n, b.dimensions.shape(b.meta[0].shape), attributes)


def _maxima(b: Builder, x: Value, n: int, shape: Sequence[Any], attributes: dict[str, Any]) -> list[Value]:
    x, added = _batched(b, x, n)
    whole = (1, *shape) if added else tuple(shape)
    y, indices = b.ops("MaxPool", [x], 2, attributes)
    assert x.dtype is not None
    y.type, y.shape = onnx_ir.TensorType(x.dtype), onnx_ir.Shape(whole)
    indices.type, indices.shape = onnx_ir.TensorType(DataType.INT64), onnx_ir.Shape(whole)
    # ONNX counts through batch and channels as well.
    size = b.op("ReduceProd", b.sizes(dims(x)[-n:]), shape=(), keepdims=0)
    within = b.op("Mod", indices, size)
    return [_unbatched(b, y, added), _unbatched(b, within, added)]


@rule("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def avg_pool(
    b: Builder,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    if divisor_override and ceil_mode:
        raise b.unsupported("average pooling with a divisor and windows that reach over the edge")
    n = _pool_rank(b)
    kernel = _many(kernel_size, n)
    x, added = _batched(b, x, n)
    shape = (1, *b.shape) if added else b.shape
    include = 1 if divisor_override else int(count_include_pad)
    y = b.op("AveragePool", x, shape=shape, kernel_shape=kernel, strides=_many(stride, n) if stride else kernel,
             pads=_many(padding, n) * 2, ceil_mode=int(ceil_mode), count_include_pad=include)  # fmt: skip
    if divisor_override:
        y = b.op("Mul", y, b.scalar(math.prod(kernel) / divisor_override, y.dtype))
    return _unbatched(b, y, added)


def _pool_rank(b: Builder) -> int:
    return int(b.spatial)


@rule("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
def adaptive_avg_pool(b: Builder, x: Value, output_size: Any) -> Value:
    return _adaptive(b, x, _many(output_size, b.spatial), "ReduceMean", "AveragePool")


@rule("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(b: Builder, x: Value, output_size: Any) -> list[Value]:
    n = b.spatial
    sizes, have = _many(output_size, n), dims(x)[-n:]
    if all(isinstance(size, int) and size % want == 0 for size, want in zip(have, sizes, strict=True)):
        kernel = [fixed(size) // want for size, want in zip(have, sizes, strict=True)]
        return _maxima(b, x, n, [*dims(x)[:-n], *sizes], {"kernel_shape": kernel, "strides": kernel})
    return [_adaptive(b, x, sizes, "ReduceMax", "MaxPool")]


def _adaptive(b: Builder, x: Value, sizes: list[int], reduction: str, pooling: str) -> Value:
    n = len(sizes)
    shape = [*dims(x)[:-n], *sizes]
    if all(size == 1 for size in sizes):
        return b.op(reduction, x, b.ints(list(range(rank(x) - n, rank(x)))), shape=shape, keepdims=1)
    have = dims(x)[-n:]
    if any(not isinstance(d, int) for d in have):
        raise b.unsupported("adaptive pooling of a dynamic size to anything but 1")
    kernel = []
    for size, want in zip(have, sizes, strict=True):
        if fixed(size) % want:
            return _uneven(b, x, sizes, reduction)
        kernel.append(fixed(size) // want)
    if all(k == 1 for k in kernel):
        return x
    whole, added = _batched(b, x, n)
    y = b.op(pooling, whole, shape=(1, *shape) if added else shape, kernel_shape=kernel, strides=kernel)
    return _unbatched(b, y, added)


def _uneven(b: Builder, x: Value, sizes: list[int], reduction: str) -> Value:
    """Windows of unequal size: one slice and reduction per window, axis by axis."""
    n = len(sizes)
    for i, want in enumerate(sizes):
        axis = rank(x) - n + i
        size = fixed(dims(x)[axis])
        parts = []
        for j in range(want):
            start, end = j * size // want, -(-(j + 1) * size // want)
            shape = list(dims(x))
            shape[axis] = end - start
            piece = b.op("Slice", x, b.ints([start]), b.ints([end]), b.ints([axis]), shape=shape)
            shape[axis] = 1
            parts.append(b.op(reduction, piece, b.ints([axis]), shape=shape, keepdims=1))
        shape = list(dims(x))
        shape[axis] = want
        x = parts[0] if len(parts) == 1 else b.op("Concat", *parts, shape=shape, axis=axis)
    return x


def _resize(b: Builder, x: Value, mode: str, align_corners: bool = False) -> Value:
    spatial = rank(x) - 2
    sizes = b.sizes(b.shape[2:])
    transform = "asymmetric" if mode == "nearest" else "align_corners" if align_corners else "pytorch_half_pixel"
    return b.op("Resize", x, None, None, sizes, shape=b.shape, mode=mode, coordinate_transformation_mode=transform,
                nearest_mode="floor" if mode == "nearest" else None, axes=list(range(2, 2 + spatial)),
                cubic_coeff_a=-0.75 if mode == "cubic" else None)  # fmt: skip


def _scaled(b: Builder, x: Value, scales: Any, mode: str) -> Value:
    factors = b.constant(np.asarray(list(scales), dtype=np.float32), "scales")
    return b.op("Resize", x, None, factors, shape=b.shape, mode=mode,
                coordinate_transformation_mode="asymmetric" if mode == "nearest" else "pytorch_half_pixel",
                nearest_mode="floor" if mode == "nearest" else None, axes=list(range(2, rank(x))),
                cubic_coeff_a=-0.75 if mode == "cubic" else None)  # fmt: skip


@rule("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec", "aten.upsample_nearest3d.vec")
def upsample_nearest(b: Builder, x: Value, output_size: Any, scale_factors: Any = None) -> Value:
    return _scaled(b, x, scale_factors, "nearest") if scale_factors else _resize(b, x, "nearest")


@rule("aten.upsample_linear1d.vec", "aten.upsample_bilinear2d.vec", "aten.upsample_trilinear3d.vec")
def upsample_linear(b: Builder, x: Value, output_size: Any, align_corners: bool, scale_factors: Any = None) -> Value:
    if scale_factors and not align_corners:
        return _scaled(b, x, scale_factors, "linear")
    return _resize(b, x, "linear", align_corners)


@rule("aten.upsample_bicubic2d.vec")
def upsample_bicubic(b: Builder, x: Value, output_size: Any, align_corners: bool, scale_factors: Any = None) -> Value:
    if scale_factors and not align_corners:
        return _scaled(b, x, scale_factors, "cubic")
    return _resize(b, x, "cubic", align_corners)


@rule("aten.upsample_nearest1d.default", "aten.upsample_nearest2d.default", "aten.upsample_nearest3d.default")
def upsample_nearest_size(b: Builder, x: Value, output_size: Any, *_: Any) -> Value:
    return _resize(b, x, "nearest")


@rule("aten.upsample_bilinear2d.default", "aten.upsample_linear1d.default")
def upsample_linear_size(b: Builder, x: Value, output_size: Any, align_corners: bool, *_: Any) -> Value:
    return _resize(b, x, "linear", align_corners)


@rule("aten.upsample_bicubic2d.default")
def upsample_bicubic_size(b: Builder, x: Value, output_size: Any, align_corners: bool, *_: Any) -> Value:
    return _resize(b, x, "cubic", align_corners)


@rule("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(
    b: Builder, x: Value, grid: Value, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Value:
    modes, pads = ["linear", "nearest", "cubic"], ["zeros", "border", "reflection"]
    return b.op("GridSample", x, grid, shape=b.shape, mode=modes[interpolation_mode],
                padding_mode=pads[padding_mode], align_corners=int(align_corners))  # fmt: skip
