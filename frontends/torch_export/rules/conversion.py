"""Conversion between element types, and what changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from onnx_ir import DataType, Value

from ..builder import Builder, dims
from ..registry import rule
from .operands import Operand, operand


@rule("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other", "aten._to_copy.default",
      "aten.type_as.default")  # fmt: skip
def to(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    return b.cast(x, b.dtype)


@rule("aten.detach.default", "aten.alias.default", "aten.contiguous.default", "aten.clone.default",
      "aten.lift_fresh_copy.default", "aten.lift_fresh.default", "aten.view_as_real_copy.default",
      "aten.positive.default", "aten.resolve_conj.default", "aten.resolve_neg.default")  # fmt: skip
def same(b: Builder, x: Value, **_: Any) -> Value:
    return x


@rule("aten.item.default", "aten._local_scalar_dense.default")
def item(b: Builder, x: Value) -> Any:
    meta = b.meta
    flat = b.op("Reshape", b.cast(x, DataType.INT64), b.ints([1]), shape=[1])
    if not isinstance(meta, torch.SymInt):
        raise b.unsupported("a number read out of a tensor decides what the model computes")
    b.bind(meta, lambda: flat)
    return meta


@rule("aten.copy.default")
def copy(b: Builder, x: Value, source: Value, non_blocking: bool = False) -> Value:
    source = b.cast(source, b.dtype)
    if dims(source) == dims(x):
        return source
    return b.op("Expand", source, b.sizes(dims(x)), shape=dims(x))


@rule("aten.fill.Scalar", "aten.fill.Tensor")
def fill(b: Builder, x: Value, value: Operand) -> Value:
    return b.op("Expand", operand(b, value, b.dtype), b.sizes(dims(x)), shape=dims(x))


@rule("aten.zero.default")
def zero(b: Builder, x: Value) -> Value:
    return fill(b, x, 0)
