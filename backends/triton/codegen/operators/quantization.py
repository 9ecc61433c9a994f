"""Codes and what they stand for."""

from __future__ import annotations

import onnx_ir
import sympy

from ..arrays import SMALL_FLOATS, Array, Place, Unfit, cast, compute, moved, number, reshaped
from ..indexing import ONE, Index
from .registry import Operator, Result, rule

_RANGE = {
    onnx_ir.DataType.UINT8: (0, 255), onnx_ir.DataType.INT8: (-128, 127), onnx_ir.DataType.UINT4: (0, 15),
    onnx_ir.DataType.INT4: (-8, 7), onnx_ir.DataType.UINT2: (0, 3), onnx_ir.DataType.INT2: (-2, 1),
    onnx_ir.DataType.UINT16: (0, 65535), onnx_ir.DataType.INT16: (-32768, 32767),
}  # fmt: skip


def _spread(parameter: Array, x: Array, axis: int, block: int) -> Array:
    """Scales or zero points as they apply to each place of ``x``."""
    if all(size == 1 for size in parameter.shape):
        return reshaped(parameter, ())
    if block:
        shape = x.shape
        step = sympy.Integer(block)

        def where(reader: Place, index: Index) -> Index:
            return tuple(reader.ranges.quotient(i, step) if n == axis else i for n, i in enumerate(index))

        return moved(parameter, shape, where)
    return reshaped(parameter, (*parameter.shape, *(ONE,) * (len(x.shape) - axis - 1)))


def _axis(op: Operator, x: Array) -> tuple[int, int]:
    block = op.attr("block_size", 0)
    return op.axis(1, len(x.shape)), block


@rule("DequantizeLinear")
def _dequantize(op: Operator) -> Result:
    x, scale, zero = op[0], op[1], op.get(2)
    axis, block = _axis(op, x)
    values = cast(x, scale.dtype)
    if zero is not None:
        shift = cast(_spread(zero, x, axis, block), scale.dtype)
        values = compute("{0} - {1}", values, shift, dtype=scale.dtype, shape=x.shape)
    return compute("{0} * {1}", values, _spread(scale, x, axis, block), dtype=op.dtype(), shape=x.shape)


@rule("QuantizeLinear")
def _quantize(op: Operator) -> Result:
    x, scale, zero = op.wide(), op.wide(1), op.get(2)
    axis, block = _axis(op, x)
    if x.dtype == "float64":
        raise Unfit("float64: rounding is one for float32")
    kind = op.node.outputs[0].dtype
    ratio = compute("{0} / {1}", x, _spread(scale, x, axis, block), dtype="float32", shape=x.shape)
    if kind is None or kind not in _RANGE:
        if op.dtype() in SMALL_FLOATS:
            return cast(ratio, op.dtype())
        raise Unfit(f"codes of type {kind}")
    codes = compute("m.round_even({0})", ratio)
    if zero is not None:
        shift = cast(_spread(zero, x, axis, block), "float32")
        codes = compute("{0} + {1}", codes, shift, shape=x.shape)
    low, high = (number(float(v), "float32") for v in _RANGE[kind])
    return cast(compute("tl.minimum(tl.maximum({0}, {1}), {2})", codes, low, high), op.dtype())
