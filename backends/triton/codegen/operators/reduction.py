"""Reductions along axes, softmax and normalizations, as sums and maxima with elementwise operators around them."""

from __future__ import annotations

import sympy

from .....ir.traits import reduced_axes
from ..arrays import (
    FLOATS,
    Array,
    Position,
    Unfit,
    cast,
    compute,
    number,
    reduce,
    reshaped,
    tile_type,
)
from ..indexing import ONE, Expr, Index
from .elementwise import float32_only
from .registry import Operator, Result, rule


def count(x: Array, axes: tuple[int, ...]) -> Array:
    """How many elements are combined, as a float."""
    total: Expr = sympy.Mul(*(x.shape[n] for n in axes))
    if total.is_Integer:
        return number(float(total), "float32")
    whole = Position((), "int64", lambda ranges, index: total)
    return compute("{0}.to(tl.float32)", whole, dtype="float32")


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean, axes kept at size 1."""
    if not axes:
        return x
    total = sympy.Mul(*(x.shape[n] for n in axes))
    if total.is_Integer and total > 0 and x.dtype == "float32":
        return compute("{0} * {1}", reduce("sum", x, axes), number(1.0 / int(total), "float32"))
    return compute(
        "{0} / {1}", reduce("sum", x, axes), cast(count(x, axes), x.dtype), shape=reduce("sum", x, axes).shape
    )


def _with_nan(kind: str, x: Array, axes: tuple[int, ...]) -> Array:
    """The largest or smallest element; NaN if there is one."""
    found = reduce(kind, x, axes)
    if x.dtype not in FLOATS:
        return found
    strange = reduce("max", compute("({0} != {0}).to(tl.int32)", x, dtype="int32"), axes)
    return compute('tl.where({0} > 0, float("nan"), {1})', strange, found, dtype=x.dtype)


def axes_of(op: Operator) -> tuple[int, ...]:
    """The axes that a reduction goes over.

    Raises:
        Unfit: they are data.
    """
    x = op[0]
    axes = op.ints("axes", 1)
    if not axes:
        return () if op.attr("noop_with_empty_axes", 0) else tuple(range(len(x.shape)))
    return tuple(sorted({a % len(x.shape) for a in axes}))


_SQUARE, _ABS = "{0} * {0}", "tl.abs({0})"


@rule("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
      "ReduceLogSum", "ReduceLogSumExp")  # fmt: skip
def _reduce(op: Operator) -> Result:
    kind, axes, dtype = op.node.op_type.removeprefix("Reduce"), axes_of(op), op.dtype()
    x = op.wide()
    if x.dtype == "int1":
        x = cast(x, "int8")
    if kind in ("Mean", "L2", "LogSum", "LogSumExp") and x.dtype not in FLOATS:
        raise Unfit("integers")
    if kind == "Sum":
        y = reduce("sum", x, axes)
    elif kind == "Mean":
        y = mean(x, axes)
    elif kind in ("Max", "Min"):
        y = _with_nan(kind.lower(), x, axes)
    elif kind == "Prod":
        y = reduce("prod", x, axes)
    elif kind == "L1":
        y = reduce("sum", compute(_ABS, x), axes)
    elif kind == "L2":
        y = compute("tl.sqrt({0})", reduce("sum", compute(_SQUARE, x), axes))
    elif kind == "SumSquare":
        y = reduce("sum", compute(_SQUARE, x), axes)
    elif kind == "LogSum":
        y = compute("tl.log({0})", reduce("sum", x, axes))
    else:
        largest = _finite(reduce("max", x, axes))
        total = reduce("sum", compute("tl.exp({0} - {1})", x, largest), axes)
        y = compute("{1} + tl.log({0})", total, largest)
    return reshaped(cast(y, dtype), op.shape())


def _finite(x: Array) -> Array:
    """0 where a maximum is infinite, so that nothing is subtracted."""
    return compute('tl.where(tl.abs({0}) == float("inf"), 0.0, {0})', x)


@rule("ArgMax", "ArgMin")
def _arg(op: Operator) -> Result:
    x = op.wide()
    axis = op.axis(0, len(x.shape))
    if x.dtype == "int1":
        x = cast(x, "int8")
    best = _with_nan("max" if op.node.op_type == "ArgMax" else "min", x, (axis,))
    place = Position(x.shape, "int64", lambda ranges, index: index[axis])
    last = bool(op.attr("select_last_index", 0))
    other = number(-1 if last else 2**62, "int64")
    found = compute("tl.where(({0} == {1}) | ({0} != {0}), {2}, {3})", x, best, place, other, dtype="int64")
    return reshaped(reduce("max" if last else "min", found, (axis,)), op.shape())


@rule("GlobalAveragePool", "GlobalMaxPool")
def _global(op: Operator) -> Result:
    x = op.wide()
    axes = tuple(range(2, len(x.shape)))
    y = mean(x, axes) if op.node.op_type == "GlobalAveragePool" else _with_nan("max", x, axes)
    return cast(y, op.dtype())


@rule("Softmax", "LogSoftmax")
def _softmax(op: Operator) -> Result:
    x = op.wide()
    if op.opset < 13:
        axes = tuple(range(op.attr("axis", 1) % max(len(x.shape), 1), len(x.shape)))
    else:
        axes = (op.axis(-1, len(x.shape)),)
    if not x.shape:
        raise Unfit("a single number")
    shifted = compute("{0} - {1}", x, reduce("max", x, axes), shape=x.shape)
    exponential = compute("tl.exp({0})", shifted)
    total = reduce("sum", exponential, axes)
    if op.node.op_type == "LogSoftmax":
        return cast(compute("{0} - tl.log({1})", shifted, total, shape=x.shape), op.dtype())
    return cast(compute("{0} / {1}", exponential, total, shape=x.shape), op.dtype())


@rule("Hardmax")
def _hardmax(op: Operator) -> Result:
    x = op.wide()
    axis = op.axis(-1, len(x.shape))
    best = reduce("max", x, (axis,))
    place = Position(x.shape, "int64", lambda ranges, index: index[axis])
    far = number(2**62, "int64")
    found = compute("tl.where({0} == {1}, {2}, {3})", x, best, place, far, dtype="int64", shape=x.shape)
    first = reduce("min", found, (axis,))
    return compute("tl.where({0} == {1}, 1.0, 0.0)", place, first, dtype=op.dtype(), shape=x.shape)


@rule("LpNormalization")
def _lp(op: Operator) -> Result:
    x, p = op.wide(), op.attr("p", 2)
    axis = op.axis(-1, len(x.shape))
    if p == 1:
        norm: Array = reduce("sum", compute(_ABS, x), (axis,))
    else:
        norm = compute("tl.sqrt({0})", reduce("sum", compute(_SQUARE, x), (axis,)))
    return cast(compute("{0} / {1}", x, norm, shape=x.shape), op.dtype())


def centred(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """(mean, x - mean, variance), in two steps, which is exact where the mean is large."""
    middle = mean(x, axes)
    difference = compute("{0} - {1}", x, middle, shape=x.shape)
    return middle, difference, mean(compute(_SQUARE, difference), axes)


@rule("LayerNormalization")
def _layer_norm(op: Operator) -> Result:
    x = op.wide()
    axes = reduced_axes(op.node)
    if axes is None:
        raise Unfit("its axes are not known")
    middle, difference, variance = centred(x, axes)
    inverse = compute("tl.rsqrt({0} + {1})", variance, number(op.attr("epsilon", 1e-5), x.dtype))
    y = compute("{0} * {1} * {2}", difference, inverse, cast(op[1], x.dtype), shape=x.shape)
    bias = op.get(2)
    if bias is not None:
        y = compute("{0} + {1}", y, cast(bias, x.dtype), shape=x.shape)
    return [cast(y, op.dtype()), middle, inverse]


@rule("RMSNormalization", "SimplifiedLayerNormalization")
@rule("SimplifiedLayerNormalization", domain="com.microsoft")
def _rms_norm(op: Operator) -> Result:
    x = op.wide()
    axes = reduced_axes(op.node)
    if axes is None:
        axes = tuple(range(op.axis(-1, len(x.shape)), len(x.shape)))
    if len(op.node.outputs) > 1 and op.node.outputs[1].uses():
        raise Unfit("its second output is used")
    square = mean(compute(_SQUARE, x), axes)
    inverse = compute("tl.rsqrt({0} + {1})", square, number(op.attr("epsilon", 1e-5), x.dtype))
    y = compute("{0} * {1} * {2}", x, inverse, cast(op[1], x.dtype), shape=x.shape)
    return [cast(y, op.dtype())] + [None] * (len(op.node.outputs) - 1)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def _skip_norm(op: Operator) -> Result:
    simple = op.node.op_type == "SkipSimplifiedLayerNormalization"
    if any(v.uses() for v in op.node.outputs[1:3]):
        raise Unfit("its mean or inverse is used")
    total = compute("{0} + {1}", op.wide(0), cast(op[1], "float32"), shape=op[0].shape)
    gamma, beta, bias = op[2], None if simple else op.get(3), op.get(3 if simple else 4)
    if bias is not None:
        total = compute("{0} + {1}", total, cast(bias, total.dtype), shape=total.shape)
    axes = (len(total.shape) - 1,)
    epsilon = number(op.attr("epsilon", 1e-12), total.dtype)
    difference: Array = total
    if simple:
        variance = mean(compute(_SQUARE, total), axes)
    else:
        _, difference, variance = centred(total, axes)
    inverse = compute("tl.rsqrt({0} + {1})", variance, epsilon)
    y = compute("{0} * {1} * {2}", difference, inverse, cast(gamma, total.dtype), shape=total.shape)
    if beta is not None:
        y = compute("{0} + {1}", y, cast(beta, total.dtype), shape=total.shape)
    outputs: list[Array | None] = [cast(y, op.dtype()), None, None, cast(total, op.dtype())]
    return outputs[: len(op.node.outputs)]


def _channel(parameter: Array, x: Array) -> Array:
    """A parameter of each channel, in front of the places."""
    ones: Index = (ONE,) * (len(x.shape) - 2)
    return cast(reshaped(parameter, (*parameter.shape, *ones)), tile_type(x.dtype))


@rule("InstanceNormalization")
def _instance_norm(op: Operator) -> Result:
    x = op.wide()
    axes = tuple(range(2, len(x.shape)))
    _, difference, variance = centred(x, axes)
    inverse = compute("tl.rsqrt({0} + {1})", variance, number(op.attr("epsilon", 1e-5), x.dtype))
    y = compute("{0} * {1} * {2} + {3}", difference, inverse, _channel(op[1], x), _channel(op[2], x), shape=x.shape)
    return cast(y, op.dtype())


@rule("GroupNormalization")
def _group_norm(op: Operator) -> Result:
    x, groups = op.wide(), op.attr("num_groups")
    channels = x.shape[1]
    if not channels.is_Integer:
        raise Unfit("the number of channels is not known")
    each = sympy.Integer(int(channels) // groups)
    whole = sympy.Mul(*x.shape[2:]) if len(x.shape) > 2 else ONE
    grouped: Index = (x.shape[0], sympy.Integer(groups), each, whole)
    split = reshaped(x, grouped)
    _, difference, variance = centred(split, (2, 3))
    inverse = compute("tl.rsqrt({0} + {1})", variance, number(op.attr("epsilon", 1e-5), x.dtype))
    parameters = []
    for parameter in (op[1], op[2]):
        of_group = parameter.shape[0] != channels  # opset 18: one a group
        shape = (sympy.Integer(groups), ONE if of_group else each, ONE)
        parameters.append(cast(reshaped(parameter, shape), x.dtype))
    y = compute("{0} * {1} * {2} + {3}", difference, inverse, *parameters, shape=grouped)
    return reshaped(cast(y, op.dtype()), x.shape)


@rule("MeanVarianceNormalization")
def _mean_variance(op: Operator) -> Result:
    x = op.wide()
    axes = tuple(sorted(a % len(x.shape) for a in op.attr("axes", [0, 2, 3])))
    _, difference, variance = centred(x, axes)
    return cast(compute("{0} / (tl.sqrt({1}) + 1e-9)", difference, variance, shape=x.shape), op.dtype())


@rule("DynamicQuantizeLinear")
def _dynamic(op: Operator) -> Result:
    """Codes of 8 bits with the scale and zero point of the whole tensor."""
    x = op[0]
    float32_only(x)
    axes = tuple(range(len(x.shape)))
    high = compute("tl.maximum({0}, 0.0)", reduce("max", x, axes))
    low = compute("tl.minimum({0}, 0.0)", reduce("min", x, axes))
    scale = compute("({0} - {1}) / 255.0", high, low)
    step = compute("tl.where({0} == 0.0, 1.0, {0})", scale)
    zero = compute("tl.minimum(tl.maximum(m.round_even(-{0} / {1}), 0.0), 255.0)", low, step)
    codes = compute("tl.minimum(tl.maximum(m.round_even({0} / {1}) + {2}, 0.0), 255.0)", x, step, zero, shape=x.shape)
    return [cast(codes, "uint8"), reshaped(scale, ()), cast(reshaped(zero, ()), "uint8")]
