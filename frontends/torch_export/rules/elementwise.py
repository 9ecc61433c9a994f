"""Element-wise operators: arithmetic, comparison, logic, activations, conversion."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir
import torch
from onnx_ir import DataType, Value

from ..builder import Builder, Number, dims, fixed, rank
from ..dtypes import is_float, promote
from ..registry import rule

Operand = Value | Number


def operand(b: Builder, x: Operand, dtype: DataType) -> Value:
    """A tensor or number as a value of one element type."""
    return b.cast(x, dtype) if isinstance(x, Value) else b.scalar(x, dtype)


def binary(b: Builder, op_type: str, x: Operand, y: Operand) -> Value:
    """An arithmetic operator after torch's type promotion."""
    dtype = b.dtype
    return b.op(op_type, operand(b, x, dtype), operand(b, y, dtype))


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


# Comparison and logic.


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


# One operand.

_UNARY = {
    "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh", "atan": "Atan", "atanh": "Atanh", "cos": "Cos",
    "cosh": "Cosh", "erf": "Erf", "exp": "Exp", "log": "Log", "reciprocal": "Reciprocal",
    "sigmoid": "Sigmoid", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
_KEEPING = {"ceil": "Ceil", "floor": "Floor", "round": "Round"}


def _register_unary(name: str, op_type: str, *, integers: bool) -> None:
    @rule(f"aten.{name}.default")
    def apply(b: Builder, x: Value) -> Value:
        if integers and not is_float(x.dtype):
            return x
        return b.op(op_type, b.cast(x, b.dtype))


for _name, _op in _UNARY.items():
    _register_unary(_name, _op, integers=False)
for _name, _op in _KEEPING.items():
    _register_unary(_name, _op, integers=True)


@rule("aten.round.decimals")
def round_decimals(b: Builder, x: Value, decimals: int = 0) -> Value:
    factor = b.scalar(10.0**decimals, x.dtype)
    return b.op("Div", b.op("Round", b.op("Mul", x, factor)), factor)


@rule("aten.abs.default")
def absolute(b: Builder, x: Value) -> Value:
    return b.op("Abs", x)


@rule("aten.neg.default")
def neg(b: Builder, x: Value) -> Value:
    return b.op("Neg", x)


@rule("aten.sign.default", "aten.sgn.default")
def sign(b: Builder, x: Value) -> Value:
    return x if x.dtype == DataType.BOOL else b.op("Sign", x)


@rule("aten.trunc.default", "aten.fix.default")
def trunc(b: Builder, x: Value) -> Value:
    return truncate(b, x) if is_float(x.dtype) else x


@rule("aten.frac.default")
def frac(b: Builder, x: Value) -> Value:
    return b.op("Sub", x, truncate(b, x))


@rule("aten.rsqrt.default")
def rsqrt(b: Builder, x: Value) -> Value:
    return b.op("Reciprocal", b.op("Sqrt", b.cast(x, b.dtype)))


@rule("aten.square.default")
def square(b: Builder, x: Value) -> Value:
    return b.op("Mul", x, x)


@rule("aten.exp2.default")
def exp2(b: Builder, x: Value) -> Value:
    return binary(b, "Pow", 2.0, x)


@rule("aten.expm1.default")
def expm1(b: Builder, x: Value) -> Value:
    return b.op("Sub", b.op("Exp", b.cast(x, b.dtype)), b.scalar(1, b.dtype))


@rule("aten.log1p.default")
def log1p(b: Builder, x: Value) -> Value:
    return b.op("Log", b.op("Add", b.cast(x, b.dtype), b.scalar(1, b.dtype)))


@rule("aten.log2.default")
def log2(b: Builder, x: Value) -> Value:
    return b.op("Div", b.op("Log", b.cast(x, b.dtype)), b.scalar(math.log(2), b.dtype))


@rule("aten.log10.default")
def log10(b: Builder, x: Value) -> Value:
    return b.op("Div", b.op("Log", b.cast(x, b.dtype)), b.scalar(math.log(10), b.dtype))


# Activations.


@rule("aten.relu.default")
def relu(b: Builder, x: Value) -> Value:
    return b.op("Relu", x)


@rule("aten.gelu.default")
def gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    return b.op("Gelu", x, approximate=None if approximate == "none" else approximate)


@rule("aten.silu.default")
def silu(b: Builder, x: Value) -> Value:
    # ONNX has Swish from opset 24 on; ONNX Runtime's own fusion finds this form.
    return b.op("Mul", x, b.op("Sigmoid", x))


@rule("aten.mish.default")
def mish(b: Builder, x: Value) -> Value:
    return b.op("Mish", x)


@rule("aten.leaky_relu.default")
def leaky_relu(b: Builder, x: Value, negative_slope: float = 0.01) -> Value:
    return b.op("LeakyRelu", x, alpha=float(negative_slope))


@rule("aten.elu.default")
def elu(b: Builder, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if input_scale != 1:
        x = binary(b, "Mul", x, input_scale)
    y = b.op("Elu", x, alpha=float(alpha))
    return y if scale == 1 else binary(b, "Mul", y, scale)


@rule("aten.selu.default")
def selu(b: Builder, x: Value) -> Value:
    return b.op("Selu", x)


@rule("aten.celu.default")
def celu(b: Builder, x: Value, alpha: float = 1.0) -> Value:
    return b.op("Celu", x, alpha=float(alpha))


@rule("aten.hardswish.default")
def hardswish(b: Builder, x: Value) -> Value:
    return b.op("HardSwish", x)


@rule("aten.hardsigmoid.default")
def hardsigmoid(b: Builder, x: Value) -> Value:
    return b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@rule("aten.log_sigmoid.default")
def log_sigmoid(b: Builder, x: Value) -> Value:
    return b.op("Neg", b.op("Softplus", b.op("Neg", x)))


@rule("aten.softplus.default")
def softplus(b: Builder, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if beta == 1:
        return b.op("Softplus", x)
    return binary(b, "Div", b.op("Softplus", binary(b, "Mul", x, beta)), beta)


@rule("aten.softsign.default")
def softsign(b: Builder, x: Value) -> Value:
    return b.op("Softsign", x)


@rule("aten.prelu.default")
def prelu(b: Builder, x: Value, weight: Value) -> Value:
    if rank(weight) == 1 and dims(weight)[0] != 1 and rank(x) > 2:
        shape = [fixed(dims(weight)[0]), *[1] * (rank(x) - 2)]
        weight = b.op("Reshape", weight, b.ints(shape), shape=shape)
    return b.op("PRelu", x, weight)


@rule("aten.threshold.default")
def threshold(b: Builder, x: Value, threshold: Number, value: Number) -> Value:
    return b.op("Where", compare(b, "Greater", x, threshold), x, b.scalar(value, x.dtype))


@rule("aten.glu.default")
def glu(b: Builder, x: Value, dim: int = -1) -> Value:
    first, gate = b.ops("Split", [x], 2, {"axis": dim, "num_outputs": 2})
    for part in (first, gate):
        part.type, part.shape = onnx_ir.TensorType(b.dtype), onnx_ir.Shape(b.shape)
    return b.op("Mul", first, b.op("Sigmoid", gate))


@rule("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def dropout(b: Builder, x: Value, p: float, train: bool) -> Value:
    if train and p > 0:
        raise b.unsupported("dropout is active: the result would be random; call model.eval() before compiling")
    return x


# Conversion.


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
