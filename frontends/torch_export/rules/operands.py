"""Operands of element-wise operators: tensors or numbers, brought to one element type."""

from __future__ import annotations

from onnx_ir import DataType, Value

from ..builder import Builder, Number

Operand = Value | Number


def operand(b: Builder, x: Operand, dtype: DataType) -> Value:
    """A tensor or number as a value of one element type."""
    return b.cast(x, dtype) if isinstance(x, Value) else b.scalar(x, dtype)


def binary(b: Builder, op_type: str, x: Operand, y: Operand) -> Value:
    """An arithmetic operator after torch's type promotion."""
    dtype = b.dtype
    return b.op(op_type, operand(b, x, dtype), operand(b, y, dtype))
