"""A small tensor of sizes, element by element."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir
import sympy

from .symbolic import UNKNOWN, Dim, known, to_expr

LIMIT = 1024
"""Tensors of more elements are not followed."""

Array = np.ndarray[Any, Any]

FOLLOWED = frozenset(
    (
        onnx_ir.DataType.INT64,
        onnx_ir.DataType.INT32,
        onnx_ir.DataType.BOOL,
        onnx_ir.DataType.FLOAT,
        onnx_ir.DataType.DOUBLE,
    )
)
"""Element types that are followed."""


@dataclass(frozen=True, eq=False)
class SymbolicValue:
    """What a small tensor holds.

    Attributes:
        dtype: element type of the tensor.
        array: its elements in its shape, dtype object: ints or ``SymbolicDim`` (unknown where its value is None).
            Booleans are 0 and 1; fractions (float tensors) are ``SymbolicDim("1/2")``.
    """

    dtype: onnx_ir.DataType
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.array.shape)

    @property
    def elements(self) -> tuple[Dim, ...]:
        """The elements in row-major order."""
        return tuple(self.array.ravel())

    @property
    def exprs(self) -> tuple[sympy.Expr | None, ...]:
        """The elements as SymPy expressions, None where unknown."""
        return tuple(to_expr(e) for e in self.elements)

    @property
    def complete(self) -> bool:
        """Whether every element is known."""
        return all(known(e) for e in self.array.ravel())

    def constant(self) -> Array | None:
        """The tensor as numbers, if no element depends on a named dimension."""
        if any(not isinstance(e, int) for e in self.array.ravel()) or self.dtype.is_floating_point():
            return None
        return self.array.astype(self.dtype.numpy())


def from_tensor(tensor: onnx_ir.TensorProtocol) -> SymbolicValue | None:
    """A constant tensor; None if it is too large to follow, or of another type. Large ones are not read."""
    if tensor.size > LIMIT or tensor.dtype not in FOLLOWED:
        return None
    data = tensor.numpy()
    array = np.empty(data.shape, dtype=object)
    flat = array.reshape(-1)
    for i, number in enumerate(data.reshape(-1).tolist()):
        flat[i] = element(number)
    return SymbolicValue(tensor.dtype, array)


def element(number: float | int | bool) -> Dim:
    """A number of a constant as an element; unknown for a float that is no exact fraction."""
    if not isinstance(number, float):
        return int(number)
    if number.is_integer() and abs(number) < 2**24:
        return int(number)
    if not math.isfinite(number):
        return UNKNOWN
    fraction = Fraction(number)
    # Other fractions (a third) are rounded in the file, and exact arithmetic on them would differ.
    return onnx_ir.SymbolicDim(str(fraction)) if fraction.denominator <= 1024 else UNKNOWN


def from_elements(dtype: onnx_ir.DataType, elements: list[Dim], shape: tuple[int, ...]) -> SymbolicValue:
    """A value of ``shape`` from its elements in row-major order."""
    array = np.empty(shape, dtype=object)
    flat = array.reshape(-1)
    for i, element in enumerate(elements):
        flat[i] = element
    return SymbolicValue(dtype, array)


def as_ints(value: SymbolicValue | None) -> list[int] | None:
    """The elements as ints; None if one is not a plain number."""
    if value is None:
        return None
    elements = value.elements
    return [int(e) for e in elements if isinstance(e, int)] if all(isinstance(e, int) for e in elements) else None
