"""Arithmetic of two operands, after torch's type promotion."""

from __future__ import annotations

import math

from onnx_ir import DataType, Value

from ..builder import Builder, Number
from ..dtypes import is_float
from ..registry import rule
from .operands import Operand, binary, operand


@rule("aten.add.Tensor", "aten.add.Scalar")
def add(b: Builder, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    if b.dtype == DataType.BOOL:
        return b.op("Or", operand(b, x, b.dtype), operand(b, y, b.dtype))
    if alpha != 1:
        y = binary(b, "Mul", y, alpha)
    return binary(b, "Add", x, y)


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def sub(b: Builder, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    if alpha != 1:
        y = binary(b, "Mul", y, alpha)
    return binary(b, "Sub", x, y)


@rule("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(b: Builder, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    return sub(b, y, x, alpha)


@rule("aten.mul.Tensor", "aten.mul.Scalar")
def mul(b: Builder, x: Operand, y: Operand) -> Value:
    if b.dtype == DataType.BOOL:
        return b.op("And", operand(b, x, b.dtype), operand(b, y, b.dtype))
    return binary(b, "Mul", x, y)


@rule("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar")
def div(b: Builder, x: Operand, y: Operand) -> Value:
    return binary(b, "Div", x, y)


@rule("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(b: Builder, x: Operand, y: Operand, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return div(b, x, y)
    if rounding_mode == "floor":
        return floor_divide(b, x, y)
    quotient = binary(b, "Div", x, y)  # integers already truncate
    return truncate(b, quotient) if is_float(b.dtype) else quotient


def truncate(b: Builder, x: Value) -> Value:
    """Towards zero: sign(x) · floor(|x|)."""
    return b.op("Mul", b.op("Sign", x), b.op("Floor", b.op("Abs", x)))


@rule("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(b: Builder, x: Operand, y: Operand) -> Value:
    if is_float(b.dtype):
        return b.op("Floor", binary(b, "Div", x, y))
    x, y = operand(b, x, b.dtype), operand(b, y, b.dtype)
    return b.op("Div", b.op("Sub", x, b.op("Mod", x, y)), y)


@rule("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def remainder(b: Builder, x: Operand, y: Operand) -> Value:
    if not is_float(b.dtype):
        return binary(b, "Mod", x, y)
    x, y = operand(b, x, b.dtype), operand(b, y, b.dtype)
    return b.op("Sub", x, b.op("Mul", b.op("Floor", b.op("Div", x, y)), y))


@rule("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(b: Builder, x: Operand, y: Operand) -> Value:
    return b.op("Mod", operand(b, x, b.dtype), operand(b, y, b.dtype), fmod=1)


@rule("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(b: Builder, x: Operand, y: Operand) -> Value:
    if isinstance(y, (int, float)) and isinstance(x, Value):
        if y == 1:
            return b.cast(x, b.dtype)
        if y == 0.5:
            return b.op("Sqrt", b.cast(x, b.dtype))
        if y == 2:
            x = b.cast(x, b.dtype)
            return b.op("Mul", x, x)
    return binary(b, "Pow", x, y)


@rule("aten.maximum.default", "aten.max.other")
def maximum(b: Builder, x: Operand, y: Operand) -> Value:
    return _extreme(b, "Max", "Or", x, y)


@rule("aten.minimum.default", "aten.min.other")
def minimum(b: Builder, x: Operand, y: Operand) -> Value:
    return _extreme(b, "Min", "And", x, y)


def _extreme(b: Builder, op_type: str, logical: str, x: Operand, y: Operand) -> Value:
    return binary(b, logical if b.dtype == DataType.BOOL else op_type, x, y)


@rule("aten.fmax.default")
def fmax(b: Builder, x: Operand, y: Operand) -> Value:
    return _passing(b, "Max", x, y)


@rule("aten.fmin.default")
def fmin(b: Builder, x: Operand, y: Operand) -> Value:
    return _passing(b, "Min", x, y)


def _passing(b: Builder, op_type: str, x: Operand, y: Operand) -> Value:
    """An extreme that prefers numbers to NaN."""
    x, y = operand(b, x, b.dtype), operand(b, y, b.dtype)
    extreme = b.op(op_type, x, y)
    if not is_float(b.dtype):
        return extreme
    rest = b.op("Where", b.op("IsNaN", y), x, extreme)
    return b.op("Where", b.op("IsNaN", x), y, rest)


@rule("aten.copysign.Tensor", "aten.copysign.Scalar")
def copysign(b: Builder, x: Operand, y: Operand) -> Value:
    size = b.op("Abs", operand(b, x, b.dtype))
    return b.op("Where", negative(b, operand(b, y, b.dtype)), b.op("Neg", size), size)


def negative(b: Builder, x: Value) -> Value:
    """Whether the sign is set; minus zero is told by its reciprocal."""
    zero = b.scalar(0, x.dtype)
    if not is_float(x.dtype):
        return b.op("Less", x, zero)
    return b.op("Or", b.op("Less", x, zero), b.op("Less", b.op("Reciprocal", x), zero))


@rule("aten.clamp.default", "aten.clamp.Tensor", "aten.clip.default")
def clamp(b: Builder, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    x = b.cast(x, b.dtype)
    if min is not None:
        x = b.op("Max", x, operand(b, min, b.dtype))
    return x if max is None else b.op("Min", x, operand(b, max, b.dtype))


@rule("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(b: Builder, x: Value, min: Operand) -> Value:
    return clamp(b, x, min)


@rule("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(b: Builder, x: Value, max: Operand) -> Value:
    return clamp(b, x, None, max)


@rule("aten.hardtanh.default")
def hardtanh(b: Builder, x: Value, min_val: Number = -1.0, max_val: Number = 1.0) -> Value:
    return clamp(b, x, min_val, max_val)


@rule("aten.relu6.default")
def relu6(b: Builder, x: Value) -> Value:
    return clamp(b, x, 0.0, 6.0)


@rule("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(b: Builder, x: Value, end: Value, weight: Operand) -> Value:
    return b.op("Add", x, binary(b, "Mul", b.op("Sub", end, x), weight))


@rule("aten.addcmul.default")
def addcmul(b: Builder, x: Value, t1: Value, t2: Value, value: Number = 1) -> Value:
    product = binary(b, "Mul", t1, t2)
    return binary(b, "Add", x, product if value == 1 else binary(b, "Mul", product, value))


@rule("aten.addcdiv.default")
def addcdiv(b: Builder, x: Value, t1: Value, t2: Value, value: Number = 1) -> Value:
    quotient = binary(b, "Div", t1, t2)
    return binary(b, "Add", x, quotient if value == 1 else binary(b, "Mul", quotient, value))


@rule("aten.atan2.default")
def atan2(b: Builder, y: Value, x: Value) -> Value:
    angle = b.op("Atan", binary(b, "Div", y, x))
    zero, pi = b.scalar(0, b.dtype), b.scalar(math.pi, b.dtype)
    turn = b.op("Where", b.op("Less", y, zero), b.op("Neg", pi), pi)
    return b.op("Where", b.op("Less", x, zero), b.op("Add", angle, turn), angle)
