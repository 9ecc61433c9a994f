"""Comparison, logic and selection."""

from __future__ import annotations

import math

import torch
from onnx_ir import DataType, Value

from ..builder import Builder
from ..dtypes import is_float, promote
from ..registry import rule
from .operands import Operand, binary, operand


def compare(b: Builder, op_type: str, x: Operand, y: Operand) -> Value:
    """A comparison in the promoted element type of its operands."""
    dtype = promote(x, y)
    if dtype == DataType.BOOL and op_type != "Equal":
        dtype = DataType.INT32
    return b.op(op_type, operand(b, x, dtype), operand(b, y, dtype))


@rule("aten.eq.Tensor", "aten.eq.Scalar")
def eq(b: Builder, x: Value, y: Operand) -> Value:
    return compare(b, "Equal", x, y)


@rule("aten.ne.Tensor", "aten.ne.Scalar")
def ne(b: Builder, x: Value, y: Operand) -> Value:
    return b.op("Not", compare(b, "Equal", x, y))


@rule("aten.lt.Tensor", "aten.lt.Scalar")
def lt(b: Builder, x: Value, y: Operand) -> Value:
    return compare(b, "Less", x, y)


@rule("aten.le.Tensor", "aten.le.Scalar")
def le(b: Builder, x: Value, y: Operand) -> Value:
    return compare(b, "LessOrEqual", x, y)


@rule("aten.gt.Tensor", "aten.gt.Scalar")
def gt(b: Builder, x: Value, y: Operand) -> Value:
    return compare(b, "Greater", x, y)


@rule("aten.ge.Tensor", "aten.ge.Scalar")
def ge(b: Builder, x: Value, y: Operand) -> Value:
    return compare(b, "GreaterOrEqual", x, y)


def _bitwise(b: Builder, logical: str, bitwise: str, x: Operand, y: Operand) -> Value:
    return binary(b, logical if b.dtype == DataType.BOOL else bitwise, x, y)


@rule("aten.__and__.Tensor", "aten.__and__.Scalar", "aten.bitwise_and.Tensor", "aten.bitwise_and.Scalar")
def bitwise_and(b: Builder, x: Operand, y: Operand) -> Value:
    return _bitwise(b, "And", "BitwiseAnd", x, y)


@rule("aten.__or__.Tensor", "aten.__or__.Scalar", "aten.bitwise_or.Tensor", "aten.bitwise_or.Scalar")
def bitwise_or(b: Builder, x: Operand, y: Operand) -> Value:
    return _bitwise(b, "Or", "BitwiseOr", x, y)


@rule("aten.__xor__.Tensor", "aten.__xor__.Scalar", "aten.bitwise_xor.Tensor", "aten.bitwise_xor.Scalar")
def bitwise_xor(b: Builder, x: Operand, y: Operand) -> Value:
    return _bitwise(b, "Xor", "BitwiseXor", x, y)


@rule("aten.bitwise_not.default")
def bitwise_not(b: Builder, x: Value) -> Value:
    return b.op("Not" if x.dtype == DataType.BOOL else "BitwiseNot", x)


def as_bool(b: Builder, x: Value) -> Value:
    """Whether each element differs from zero."""
    return b.cast(x, DataType.BOOL)


@rule("aten.logical_and.default")
def logical_and(b: Builder, x: Value, y: Value) -> Value:
    return b.op("And", as_bool(b, x), as_bool(b, y))


@rule("aten.logical_or.default")
def logical_or(b: Builder, x: Value, y: Value) -> Value:
    return b.op("Or", as_bool(b, x), as_bool(b, y))


@rule("aten.logical_xor.default")
def logical_xor(b: Builder, x: Value, y: Value) -> Value:
    return b.op("Xor", as_bool(b, x), as_bool(b, y))


@rule("aten.logical_not.default")
def logical_not(b: Builder, x: Value) -> Value:
    return b.op("Not", as_bool(b, x))


@rule("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(b: Builder, condition: Value, x: Operand, y: Operand) -> Value:
    return b.op("Where", as_bool(b, condition), operand(b, x, b.dtype), operand(b, y, b.dtype))


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(b: Builder, x: Value, mask: Value, value: Operand) -> Value:
    return b.op("Where", mask, operand(b, value, b.dtype), x)


@rule("aten.isnan.default")
def isnan(b: Builder, x: Value) -> Value:
    return b.op("IsNaN", x) if is_float(x.dtype) else b.op("Not", b.op("Equal", x, x))


@rule("aten.isinf.default")
def isinf(b: Builder, x: Value) -> Value:
    return b.op("IsInf", x) if is_float(x.dtype) else b.op("Not", b.op("Equal", x, x))


@rule("aten.isfinite.default")
def isfinite(b: Builder, x: Value) -> Value:
    if not is_float(x.dtype):
        return b.op("Equal", x, x)
    limit = b.scalar(math.inf, x.dtype)
    return b.op("Less", b.op("Abs", x), limit)


@rule("aten.nan_to_num.default")
def nan_to_num(
    b: Builder, x: Value, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Value:
    if not is_float(x.dtype):
        return x
    limits = torch.finfo(b.meta.dtype)
    x = b.op("Where", b.op("IsNaN", x), b.scalar(nan or 0.0, x.dtype), x)
    high = b.scalar(limits.max if posinf is None else posinf, x.dtype)
    low = b.scalar(limits.min if neginf is None else neginf, x.dtype)
    x = b.op("Where", b.op("Equal", x, b.scalar(math.inf, x.dtype)), high, x)
    return b.op("Where", b.op("Equal", x, b.scalar(-math.inf, x.dtype)), low, x)
