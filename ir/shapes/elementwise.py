"""Shapes of operators that work element by element."""

from __future__ import annotations

from .node_view import DataType, Typed, View, broadcast, rule, unify

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumSum CumProd Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Hardmax Identity LeakyRelu Log LogSoftmax LpNormalization LRN MeanVarianceNormalization "
    "Mish Neg Not PRelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish "
    "Tan Tanh ThresholdedRelu Trilu InstanceNormalization GroupNormalization"
).split()
"""Operators whose output has the type and shape of their first input."""

BINARY = "Add BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Pow Sub Sum And Or Xor".split()
COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual".split()


@rule(*UNARY)
def _like_input(view: View) -> list[Typed]:
    return [(view.dtype(0), view.dims(0))]


@rule(*BINARY)
def _broadcast(view: View) -> list[Typed] | None:
    if view.opset < 7:
        return None
    count = len(view.node.inputs)
    # Pow alone takes an exponent of another type.
    dtype = view.dtype(0) if view.node.op_type == "Pow" else view.common_dtype(*range(count))
    if count == 2:
        return [(dtype, broadcast(view.dims(0), view.dims(1)))]
    return [(dtype, broadcast(*(view.dims(i) for i in range(count))))]


@rule(*COMPARISONS)
def _compare(view: View) -> list[Typed] | None:
    if view.opset < 7:
        return None
    view.common_dtype(0, 1)
    return [(DataType.BOOL, broadcast(view.dims(0), view.dims(1)))]


@rule("IsNaN", "IsInf")
def _test(view: View) -> list[Typed]:
    return [(DataType.BOOL, view.dims(0))]


@rule("Where")
def _where(view: View) -> list[Typed]:
    dtype = view.common_dtype(1, 2)
    return [(dtype, broadcast(view.dims(0), view.dims(1), view.dims(2)))]


@rule("Cast", "BitCast")
def _cast(view: View) -> list[Typed] | None:
    to = view.attr("to")
    if isinstance(to, str) or view.node.op_type == "BitCast":
        return None
    return [(DataType(to), view.dims(0))]


@rule("CastLike")
def _cast_like(view: View) -> list[Typed]:
    return [(view.dtype(1), view.dims(0))]


@rule("Dropout")
def _dropout(view: View) -> list[Typed]:
    return [(view.dtype(0), view.dims(0)), (DataType.BOOL, view.dims(0))]


@rule("QuantizeLinear")
def _quantize(view: View) -> list[Typed]:
    dtype = view.dtype(2) if view.input(2) is not None else None
    if dtype is None and view.input(2) is None:
        dtype = DataType(view.attr("output_dtype", 0) or DataType.UINT8.value)
    return [(dtype, view.dims(0))]


@rule("DequantizeLinear")
def _dequantize(view: View) -> list[Typed]:
    to = view.attr("output_dtype", 0)
    return [(DataType(to) if to else view.dtype(1), view.dims(0))]


@rule("DynamicQuantizeLinear")
def _dynamic_quantize(view: View) -> list[Typed]:
    return [(DataType.UINT8, view.dims(0)), (DataType.FLOAT, ()), (DataType.UINT8, ())]


@rule("BatchNormalization")
def _batch_normalization(view: View) -> list[Typed]:
    channels = unify(*(view.dims(i) for i in range(1, 5)))
    return [(view.dtype(0), view.dims(0)), *[(view.dtype(3), channels)] * 2]
