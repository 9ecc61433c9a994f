"""Operators that compute place by place."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import sympy

from ..arrays import (
    FLOATS,
    Array,
    Bound,
    Choice,
    Number,
    Place,
    Position,
    Unfit,
    broadcast_shape,
    cast,
    compute,
    moved,
    number,
    reshaped,
    rounded,
    tile_type,
)
from ..indexing import ONE, ZERO, Index
from .registry import Operator, Result, rule

_UNARY = {
    "Abs": "tl.abs({0})", "Neg": "-{0}", "Identity": "{0}", "Ceil": "tl.ceil({0})", "Floor": "tl.floor({0})",
    "Exp": "tl.exp({0})", "Log": "tl.log({0})", "Sqrt": "tl.sqrt({0})", "Sin": "tl.sin({0})", "Cos": "tl.cos({0})",
    "Reciprocal": "1.0 / {0}", "Erf": "tl.erf({0})", "BitwiseNot": "~{0}",
}  # fmt: skip
"""In any type that the operator has."""
_FLOAT32 = {
    "Acos": "m.acos({0})", "Acosh": "m.acosh({0})", "Asin": "m.asin({0})", "Asinh": "m.asinh({0})",
    "Atan": "m.atan({0})", "Atanh": "m.atanh({0})", "Cosh": "m.cosh({0})", "Sinh": "m.sinh({0})", "Tan": "m.tan({0})",
    "Tanh": "m.tanh({0})", "Softplus": "m.softplus({0})", "Round": "m.round_even({0})",
    "Mish": "{0} * m.tanh(m.softplus({0}))",
}  # fmt: skip
"""By polynomials and constants that are exact enough for float32."""
_SHAPED = {
    "Sigmoid": "m.sigmoid({0})", "Softsign": "{0} / (1.0 + tl.abs({0}))",
    "HardSwish": "{0} * tl.minimum(tl.maximum({0} * 0.16666666666666666 + 0.5, 0.0), 1.0)",
}  # fmt: skip
_BINARY = {
    "Add": "{0} + {1}", "Sub": "{0} - {1}", "Mul": "{0} * {1}", "Equal": "{0} == {1}", "Greater": "{0} > {1}",
    "GreaterOrEqual": "{0} >= {1}", "Less": "{0} < {1}", "LessOrEqual": "{0} <= {1}", "And": "{0} & {1}",
    "Or": "{0} | {1}", "Xor": "{0} ^ {1}", "BitwiseAnd": "{0} & {1}", "BitwiseOr": "{0} | {1}",
    "BitwiseXor": "{0} ^ {1}",
}  # fmt: skip
_BOOLEAN = {"Equal": "{0} == {1}", "And": "{0} & {1}", "Or": "{0} | {1}", "Xor": "{0} ^ {1}"}
_FOLDED: dict[str, Callable[[float, float], float]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b,
}  # fmt: skip


def common_type(operator: Operator, *operands: Array) -> str:
    """The type that operands are computed in."""
    types = {x.dtype for x in operands if not isinstance(x, Number)} or {x.dtype for x in operands}
    if len(types) > 1:
        wide = {tile_type(t) for t in types}
        if len(wide) > 1:
            raise Unfit(f"operands of types {', '.join(sorted(types))}")
    return next(iter(sorted(types)))


def elementwise(operator: Operator, code: str, *operands: Array, dtype: str | None = None) -> Array:
    """An expression with the shape and type of the node's output."""
    kind = dtype or operator.dtype()
    shape = operator.shape()
    if not shape and all(isinstance(x, Number) for x in operands):
        shape = ()
    return compute(code, *operands, dtype=kind, shape=shape)


def float32_only(x: Array) -> None:
    """Refuse what polynomials are not exact enough for.

    Raises:
        Unfit: float64.
    """
    if x.dtype == "float64":
        raise Unfit("float64: the formula is one for float32")


def _register() -> None:
    for name, code in (*_UNARY.items(), *_SHAPED.items()):
        rule(name)(lambda op, code=code: elementwise(op, code, op[0]))  # type: ignore[misc]
    for name, code in _FLOAT32.items():

        def narrow(op: Operator, code: str = code) -> Array:
            float32_only(op[0])
            return elementwise(op, code, op[0])

        rule(name)(narrow)
    for name, code in _BINARY.items():

        def binary(op: Operator, code: str = code) -> Array:
            a, b = op[0], op[1]
            fold = _FOLDED.get(op.node.op_type)
            if isinstance(a, Number) and isinstance(b, Number) and fold is not None and a.dtype == "float32":
                return number(float(np.float32(fold(a.value, b.value))), a.dtype)
            kind = common_type(op, a, b)
            if kind == "int1" and op.node.op_type not in _BOOLEAN:
                raise Unfit("comparison of booleans")
            return elementwise(op, code, a, b)

        rule(name)(binary)


_register()


@rule("Not")
def _not(op: Operator) -> Result:
    return elementwise(op, "{0} == 0", op[0])


@rule("Relu")
def _relu(op: Operator) -> Result:
    # NaN stays: it is not below 0.
    return elementwise(
        op, "tl.where({0} < 0, 0, {0})" if op[0].dtype not in FLOATS else "tl.where({0} < 0, 0.0, {0})", op[0]
    )


@rule("Sign")
def _sign(op: Operator) -> Result:
    zero, one, minus = (number(v, op[0].dtype) for v in _of_type(op[0].dtype, 0, 1, -1))
    if op[0].dtype.startswith("uint"):
        return elementwise(op, "tl.where({0} > 0, {1}, {2})", op[0], one, zero)
    return elementwise(op, "tl.where({0} > 0, {1}, tl.where({0} < 0, {2}, {3}))", op[0], one, minus, zero)


def _of_type(dtype: str, *values: float) -> list[float | int]:
    return [float(v) if dtype in FLOATS else int(v) for v in values]


@rule("Div")
def _div(op: Operator) -> Result:
    a, b = op[0], op[1]
    kind = common_type(op, a, b)
    if kind in FLOATS:
        if isinstance(b, Number) and kind != "float64" and b.value:
            value = float(b.value)
            if math.frexp(value)[0] in (0.5, -0.5):  # a power of two: its inverse is exact
                return elementwise(op, "{0} * {1}", a, number(1.0 / value, b.dtype))
        return elementwise(op, "{0} / {1}", a, b)
    return elementwise(op, "{0} // {1}", a, b)


@rule("Mod")
def _mod(op: Operator) -> Result:
    a, b = op[0], op[1]
    if common_type(op, a, b) in ("float64",):
        raise Unfit("remainders in float64")
    return elementwise(op, "{0} % {1}" if op.attr("fmod", 0) else "m.floor_mod({0}, {1})", _tile(a, op), _tile(b, op))


def _tile(x: Array, op: Operator) -> Array:
    """A constant as a tile, for code that asks for its type."""
    return compute("({0} + 0)", x, dtype=x.dtype) if isinstance(x, Number) and x.dtype not in FLOATS else x


@rule("BitShift")
def _shift(op: Operator) -> Result:
    return elementwise(op, "{0} << {1}" if op.attr("direction") == "LEFT" else "{0} >> {1}", op[0], op[1])


@rule("Pow")
def _pow(op: Operator) -> Result:
    x, y = op[0], op[1]
    given = op.scalar(1)
    if given is not None:
        if given == 1:
            return elementwise(op, "{0}", x)
        if given == int(given) and 2 <= given <= 8:
            return elementwise(op, " * ".join(["{0}"] * int(given)), x)
        if x.dtype in FLOATS and x.dtype != "float64":
            if given == 0.5:
                # Minus infinity to the power of 1/2 is infinity; the square root has no such value.
                return elementwise(op, "tl.where({0} == -float('inf'), float('inf'), tl.sqrt({0}))", x)
            if given == -1:
                return elementwise(op, "1.0 / {0}", x)
    if x.dtype not in FLOATS:
        raise Unfit("a power of integers that is not a small constant one")
    float32_only(x)
    base = "tl.zeros_like({1}) + {0}" if isinstance(x, Number) else "{0}"
    return elementwise(op, f"m.power({base}, {{1}})", x, cast(y, "float32"))


@rule("Max", "Min", "Sum", "Mean")
def _several(op: Operator) -> Result:
    kind = op.node.op_type
    operands = [op[n] for n in range(len(op.x))]
    common_type(op, *operands)
    total = operands[0]
    dtype = op.dtype()
    propagate = ", propagate_nan=tl.PropagateNan.ALL" if dtype in FLOATS else ""
    code = {"Max": f"tl.maximum({{0}}, {{1}}{propagate})", "Min": f"tl.minimum({{0}}, {{1}}{propagate})"}.get(
        kind, "{0} + {1}"
    )
    for n, x in enumerate(operands[1:]):
        last = n == len(operands) - 2 and kind != "Mean"
        shape = op.shape() if last else broadcast_shape([total.shape, x.shape])
        total = compute(code, total, x, dtype=dtype, shape=shape)
    if kind == "Mean":
        return elementwise(op, "{0} * {1}", total, number(1 / len(operands), dtype))
    return elementwise(op, "{0}", total)


@rule("Where")
def _where(op: Operator) -> Result:
    a, b = op[1], op[2]
    dtype = op.dtype()
    return elementwise(op, "tl.where({0}, {1}, {2})", op[0], _typed(a, dtype), _typed(b, dtype))


def _typed(x: Array, dtype: str) -> Array:
    return Number((), dtype, x.value) if isinstance(x, Number) else x


@rule("Clip")
def _clip(op: Operator) -> Result:
    x = op[0]
    low, high = op.get(1), op.get(2)
    if op.opset < 11:
        low = number(op.attr("min"), x.dtype) if op.attr("min") is not None else None
        high = number(op.attr("max"), x.dtype) if op.attr("max") is not None else None
    propagate = ", propagate_nan=tl.PropagateNan.ALL" if x.dtype in FLOATS else ""
    if low is not None:
        x = compute(f"tl.maximum({{0}}, {{1}}{propagate})", x, low, dtype=x.dtype, shape=x.shape)
    if high is not None:
        x = compute(f"tl.minimum({{0}}, {{1}}{propagate})", x, high, dtype=x.dtype, shape=x.shape)
    return x


@rule("Cast", "CastLike")
def _cast(op: Operator) -> Result:
    return rounded(op[0], op.dtype())


@rule("IsNaN")
def _is_nan(op: Operator) -> Result:
    return elementwise(op, "{0} != {0}", op[0], dtype="int1")


@rule("IsInf")
def _is_inf(op: Operator) -> Result:
    tests = [sign for sign, name in (("", "detect_positive"), ("-", "detect_negative")) if op.attr(name, 1)]
    if not tests:
        return _never(op)
    return elementwise(op, " | ".join(f'({{0}} == {sign}float("inf"))' for sign in tests), op[0], dtype="int1")


def _never(op: Operator) -> Array:
    return elementwise(op, "({0} < {0})", op[0], dtype="int1")


@rule("Gelu", "BiasGelu", "FastGelu", "QuickGelu", domain="com.microsoft")
@rule("Gelu")
def _gelu(op: Operator) -> Result:
    kind, x = op.node.op_type, op[0]
    float32_only(x)
    bias = op.get(1)
    if bias is not None and kind != "Gelu":
        x = elementwise(op, "{0} + {1}", x, bias)
    if kind == "QuickGelu":
        return elementwise(op, "{0} * m.sigmoid({0} * {1})", x, number(op.attr("alpha", 1.702), "float32"))
    if kind == "FastGelu" or op.attr("approximate", "none") == "tanh":
        code = "0.5 * {0} * (1.0 + m.tanh(0.7978845608028654 * ({0} + 0.044715 * {0} * {0} * {0})))"
        return elementwise(op, code, x)
    return elementwise(op, "0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476))", x)


@rule("Swish")
def _swish(op: Operator) -> Result:
    alpha = op.attr("alpha", 1.0)
    if alpha == 1.0:
        return elementwise(op, "{0} * m.sigmoid({0})", op[0])
    return elementwise(op, "{0} * m.sigmoid({0} * {1})", op[0], number(alpha, op[0].dtype))


@rule("SwiGLU")
def _swiglu(op: Operator) -> Result:
    if len(op.x) < 2 or op[0].shape != op[1].shape:
        raise Unfit("gate and value in one tensor")
    return elementwise(op, "{0} * m.sigmoid({0}) * {1}", op[0], op[1])


def _with(op: Operator, code: str, *attributes: tuple[str, float]) -> Array:
    """An expression of the input and of attributes."""
    numbers = [number(float(op.attr(name, default)), op[0].dtype) for name, default in attributes]
    return elementwise(op, code, op[0], *numbers)


@rule("LeakyRelu")
def _leaky(op: Operator) -> Result:
    return _with(op, "tl.where({0} < 0, {0} * {1}, {0})", ("alpha", 0.01))


@rule("ThresholdedRelu")
def _thresholded(op: Operator) -> Result:
    return _with(op, "tl.where({0} > {1}, {0}, 0.0)", ("alpha", 1.0))


@rule("HardSigmoid")
def _hard_sigmoid(op: Operator) -> Result:
    code = "tl.minimum(tl.maximum({0} * {1} + {2}, 0.0), 1.0)"
    return _with(op, code, ("alpha", 0.2), ("beta", 0.5))


@rule("Shrink")
def _shrink(op: Operator) -> Result:
    code = "tl.where({0} < -{2}, {0} + {1}, tl.where({0} > {2}, {0} - {1}, 0.0))"
    if op[0].dtype not in FLOATS:
        raise Unfit("integers")
    return _with(op, code, ("bias", 0.0), ("lambd", 0.5))


@rule("Elu")
def _elu(op: Operator) -> Result:
    float32_only(op[0])
    return _with(op, "tl.where({0} > 0, {0}, {1} * m.expm1(tl.minimum({0}, 0.0)))", ("alpha", 1.0))


@rule("Celu")
def _celu(op: Operator) -> Result:
    float32_only(op[0])
    code = "tl.maximum({0}, 0.0) + tl.minimum({1} * m.expm1(tl.minimum({0}, 0.0) / {1}), 0.0)"
    return _with(op, code, ("alpha", 1.0))


@rule("Selu")
def _selu(op: Operator) -> Result:
    float32_only(op[0])
    code = "{2} * tl.where({0} > 0, {0}, {1} * m.expm1(tl.minimum({0}, 0.0)))"
    return _with(op, code, ("alpha", 1.6732632423543772), ("gamma", 1.0507009873554805))


@rule("PRelu")
def _prelu(op: Operator) -> Result:
    return elementwise(op, "tl.where({0} < 0, {0} * {1}, {0})", op[0], op[1])


@rule("Dropout")
def _dropout(op: Operator) -> Result:
    training = op.constant(2)
    if op.get(2) is not None and (training is None or bool(training.reshape(-1)[0])):
        raise Unfit("it may drop elements")
    mask = compute("({0} == {0}) | ({0} != {0})", op[0], dtype="int1") if len(op.node.outputs) > 1 else None
    return [op[0], mask]


@rule("BatchNormalization")
def _batch_norm(op: Operator) -> Result:
    if op.attr("training_mode", 0) or len(op.node.outputs) > 1:
        raise Unfit("training")
    x = op[0]
    ones: Index = (ONE,) * (len(x.shape) - 2)
    scale, bias, mean, variance = (reshaped(op[n], (*op[n].shape, *ones)) for n in range(1, 5))
    kind = tile_type(x.dtype)
    factor = compute("{0} / tl.sqrt({1} + {2})", cast(scale, kind), cast(variance, kind),
                     number(op.attr("epsilon", 1e-5), kind))  # fmt: skip
    return elementwise(op, "({0} - {1}) * {2} + {3}", x, cast(mean, kind), factor, cast(bias, kind))


@rule("Trilu")
def _trilu(op: Operator) -> Result:
    x, k = op[0], 0
    if op.get(1) is not None:
        (k,) = op.ints("k", 1) or [0]
    upper = bool(op.attr("upper", 1))

    def distance(ranges: object, index: Index) -> sympy.Expr:
        return index[-1] - index[-2]

    difference = Position(x.shape, "int32", distance)
    zero = number(_of_type(x.dtype, 0)[0] if x.dtype != "int1" else False, x.dtype)
    sign = ">=" if upper else "<="
    return compute(f"tl.where({{0}} {sign} {k}, {{1}}, {{2}})", difference, x, zero, dtype=x.dtype, shape=x.shape)


@rule("RotaryEmbedding")
def _rotary(op: Operator) -> Result:
    """Pairs of elements turned by the angle of their position."""
    x, cos, sin, positions = op[0], op[1], op[2], op.get(3)
    float32_only(x)
    shape = x.shape
    flat = len(shape) == 3
    if flat:
        heads = op.attr("num_heads", 0)
        if not heads or not shape[2].is_Integer:
            raise Unfit("the number of heads is not known")
        size = sympy.Integer(int(shape[2]) // heads)
        x = reshaped(x, (*shape[:2], sympy.Integer(heads), size))
        sequence, last = 1, 3
    else:
        sequence, last = 2, 3
    if not x.shape[last].is_Integer:
        raise Unfit("the size of a head is not known")
    width = op.attr("rotary_embedding_dim", 0) or int(x.shape[last])
    half, whole = width // 2, int(x.shape[last])
    paired = bool(op.attr("interleaved", 0))

    def pair(ranges: object, index: Index) -> tuple[sympy.Expr, sympy.Expr]:
        """Number of the pair, and whether the element is its second."""
        at = index[last]
        r = ranges
        if paired:
            return r.quotient(at, sympy.Integer(2)), r.remainder(at, sympy.Integer(2))  # type: ignore[attr-defined]
        return r.remainder(at, sympy.Integer(half)), r.quotient(at, sympy.Integer(half))  # type: ignore[attr-defined]

    def partner(reader: Place, index: Index) -> Index:
        number_, second = pair(reader.ranges, index)
        at = 2 * number_ + 1 - second if paired else number_ + half * (1 - second)
        return (*index[:last], sympy.expand(at))

    def angle(table: Array) -> Array:
        def where(reader: Place, index: Index) -> Index:
            number_, _ = pair(reader.ranges, index)
            if positions is None:
                return (index[0] if table.shape[0] != 1 else ZERO, index[sequence], number_)
            batch = index[0] if positions.shape[0] != 1 else ZERO
            place = (batch, index[sequence] if positions.shape[1] != 1 else ZERO)
            return (reader.element(positions, place, table.shape[0]), number_)

        return moved(cast(table, "float32"), x.shape, where, *([] if positions is None else [positions]))

    def side(ranges: object, index: Index) -> sympy.Expr:
        return pair(ranges, index)[1]

    other = moved(x, x.shape, partner)
    first = Position(x.shape, "int32", side)
    turned = compute("{0} * {1} + tl.where({3} == 0, -{2}, {2}) * {4}", x, angle(cos), other, first, angle(sin),
                     dtype=x.dtype, shape=x.shape)  # fmt: skip
    result: Array = turned
    if width != whole:
        bound = sympy.Integer(width)
        result = Choice(x.shape, x.dtype, lambda index: [Bound(index[last], None, bound)], turned, x)
    return reshaped(result, shape)
