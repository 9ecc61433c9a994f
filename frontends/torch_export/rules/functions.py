"""Functions of one operand."""

from __future__ import annotations

import math

from onnx_ir import DataType, Value

from ..builder import Builder
from ..dtypes import is_float
from ..registry import rule
from .arithmetic import negative, truncate
from .operands import binary

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


@rule("aten.erfc.default", "aten.special_erfc.default")
def erfc(b: Builder, x: Value) -> Value:
    """1 − erf(x): as exact as torch's, but not relative to results near 0."""
    return b.op("Sub", b.scalar(1, b.dtype), b.op("Erf", b.cast(x, b.dtype)))


@rule("aten.signbit.default")
def signbit(b: Builder, x: Value) -> Value:
    if x.dtype == DataType.BOOL:
        raise b.unsupported("the sign of a truth value")
    return negative(b, x)


@rule("aten.angle.default")
def angle(b: Builder, x: Value) -> Value:
    """π where a real number is negative."""
    x = b.cast(x, b.dtype)
    turned = b.op("Where", b.op("Less", x, b.scalar(0, b.dtype)), b.scalar(math.pi, b.dtype), b.scalar(0, b.dtype))
    return b.op("Where", b.op("IsNaN", x), x, turned)
