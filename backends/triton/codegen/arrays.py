"""What a block computes, as arrays: the steps between ONNX operators and the instructions of a kernel.

Rules (``operators/``) turn operators into arrays; an array says how one element is made from elements of others, at an
index that is not chosen yet. Reading a whole chain at the index of an output element fuses it (``reading.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import onnx_ir
import sympy

from .indexing import ONE, Expr, Index, Ranges

TYPES: dict[onnx_ir.DataType, str] = {
    onnx_ir.DataType.FLOAT: "float32", onnx_ir.DataType.DOUBLE: "float64", onnx_ir.DataType.FLOAT16: "float16",
    onnx_ir.DataType.BFLOAT16: "bfloat16", onnx_ir.DataType.INT8: "int8", onnx_ir.DataType.INT16: "int16",
    onnx_ir.DataType.INT32: "int32", onnx_ir.DataType.INT64: "int64", onnx_ir.DataType.UINT8: "uint8",
    onnx_ir.DataType.UINT16: "uint16", onnx_ir.DataType.UINT32: "uint32", onnx_ir.DataType.UINT64: "uint64",
    onnx_ir.DataType.BOOL: "int1", onnx_ir.DataType.INT4: "int8", onnx_ir.DataType.UINT4: "uint8",
    onnx_ir.DataType.INT2: "int8", onnx_ir.DataType.UINT2: "uint8",
    onnx_ir.DataType.FLOAT8E4M3FN: "float8e4nv", onnx_ir.DataType.FLOAT8E5M2: "float8e5",
}  # fmt: skip
"""Triton's element types; codes of 4 and 2 bits are kept as bytes, as the reference backend keeps them."""
SMALL_FLOATS = ("float16", "bfloat16", "float8e4nv", "float8e5")
"""Types that are computed with in float32."""
FLOATS = ("float32", "float64", *SMALL_FLOATS)
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4,
         "int16": 2, "uint16": 2}  # fmt: skip
"""Bytes of an element; 1 for the others."""


class Unfit(Exception):
    """An operator, as it stands, is not for a generated kernel; the message says why."""


class Place(Protocol):
    """Where an array is read from: what is known there of indices."""

    @property
    def ranges(self) -> Ranges:
        """Of the index symbols."""
        ...

    def element(self, array: Array, index: Index, extent: Expr) -> sympy.Symbol:
        """An element of an integer array, from 0 to ``extent``, as a symbol for indices."""
        ...


@dataclass(frozen=True, eq=False)
class Array:
    """A tensor of a block; compared by identity.

    Attributes:
        shape: sizes.
        dtype: Triton's name of the element type.
    """

    shape: Index
    dtype: str


@dataclass(frozen=True, eq=False)
class Source(Array):
    """A tensor in memory, contiguous.

    Attributes:
        name: of the value.
    """

    name: str


@dataclass(frozen=True, eq=False)
class Number(Array):
    """A constant written into the kernel, of rank 0."""

    value: float | int | bool


@dataclass(frozen=True, eq=False)
class Compute(Array):
    """An expression of the elements at the same place; operands of lower rank or of size 1 are broadcast.

    Attributes:
        code: Triton source with ``{0}``, ``{1}`` … for the operands.
    """

    code: str
    operands: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Moved(Array):
    """Elements of another array.

    Attributes:
        operand: it.
        where: from the index of an element to its index in the operand.
        reads: other arrays whose elements ``where`` asks for.
        reshape: whether it is the same elements in the same order.
    """

    operand: Array
    where: Callable[[Place, Index], Index]
    reads: tuple[Array, ...] = ()
    reshape: bool = False


@dataclass(frozen=True)
class Bound:
    """The condition lower ≤ place < upper; a bound that is None holds always."""

    place: Expr
    lower: Expr | None
    upper: Expr | None


@dataclass(frozen=True, eq=False)
class Choice(Array):
    """One array where bounds hold, else another; neither is read where it is not chosen.

    Attributes:
        bounds: of an index; all must hold.
    """

    bounds: Callable[[Index], Sequence[Bound]]
    yes: Array
    no: Array


@dataclass(frozen=True, eq=False)
class Position(Array):
    """A whole number made of the index of the element."""

    expression: Callable[[Ranges, Index], Expr]


@dataclass(frozen=True, eq=False)
class Reduce(Array):
    """Elements combined along axes, which keep size 1.

    Attributes:
        kind: ``sum``, ``max``, ``min`` or ``prod``.
        axes: in order.
    """

    kind: str
    operand: Array
    axes: tuple[int, ...]


Shape: TypeAlias = Index


def tile_type(dtype: str) -> str:
    """The type that elements have inside a kernel."""
    return "float32" if dtype in SMALL_FLOATS else dtype


def broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    """The common shape.

    Raises:
        Unfit: two sizes differ and neither is known to be 1.
    """
    dims: list[Expr] = []
    for n in range(1, max((len(s) for s in shapes), default=0) + 1):
        found: Expr = ONE
        for shape in shapes:
            size = shape[-n] if n <= len(shape) else ONE
            if size == 1 or size == found:
                continue
            if found != 1 and not (size.is_Integer or found.is_Integer):
                raise Unfit(f"whether the sizes {found} and {size} are equal is not known")
            found = size if found == 1 or size.is_Integer else found
        dims.append(found)
    return tuple(reversed(dims))


# Builders: what rules write with.


def number(value: float | int | bool, dtype: str) -> Number:
    """A constant."""
    return Number((), dtype, value)


def compute(code: str, *operands: Array, dtype: str | None = None, shape: Shape | None = None) -> Compute:
    """An expression of elements; of the first operand's type unless one is given."""
    if shape is None:
        shape = broadcast_shape([x.shape for x in operands])
    return Compute(shape, dtype or operands[0].dtype, code, operands)


def cast(x: Array, dtype: str) -> Array:
    """Elements in another type, as C converts them; small floats are not rounded before they are stored."""
    if x.dtype == dtype:
        return x
    before, after = tile_type(x.dtype), tile_type(dtype)
    if isinstance(x, Number):
        value = bool(x.value) if dtype == "int1" else x.value if after in FLOATS else int(x.value)
        return Number((), dtype, float(value) if after in FLOATS else value)
    if before == after:
        return compute("{0}", x, dtype=dtype)
    if dtype == "int1":
        return compute("{0} != 0", x, dtype=dtype)
    return compute(f"{{0}}.to(tl.{after})", x, dtype=dtype)


def rounded(x: Array, dtype: str) -> Array:
    """Elements in another type, small floats rounded at once."""
    if dtype in SMALL_FLOATS and tile_type(x.dtype) != "int1" and x.dtype != dtype and not isinstance(x, Number):
        wide = cast(x, "float32")
        return compute(f"{{0}}.to(tl.{dtype}).to(tl.float32)", wide, dtype=dtype)
    return cast(x, dtype)


def reduce(kind: str, x: Array, axes: Sequence[int]) -> Array:
    """Elements combined along axes, which keep size 1."""
    if not axes:
        return x
    shape = tuple(ONE if n in axes else size for n, size in enumerate(x.shape))
    return Reduce(shape, x.dtype, kind, x, tuple(sorted(axes)))


def moved(x: Array, shape: Shape, where: Callable[[Place, Index], Index], *reads: Array) -> Array:
    """Elements of ``x`` at other places, which other arrays may decide."""
    return Moved(shape, x.dtype, x, where, reads)


def broadcast_index(ranges: Ranges, index: Index, shape: Shape, wanted: Shape) -> Index:
    """Where an operand of shape ``shape`` is read for an element at ``index`` of a result of shape ``wanted``."""
    place = index[len(index) - len(shape) :]
    sizes = wanted[len(wanted) - len(shape) :]
    return tuple(
        i if size == whole else (i * 0 if size == 1 else ranges.remainder(i, size))
        for i, size, whole in zip(place, shape, sizes, strict=True)
    )


def expanded(x: Array, shape: Shape) -> Array:
    """``x`` broadcast to a shape."""
    if x.shape == shape:
        return x
    return moved(x, shape, lambda reader, index: broadcast_index(reader.ranges, index, x.shape, shape))


def _matched(before: Shape, after: Shape) -> tuple[int, int]:
    """How many leading and trailing sizes are equal, so that a reshape leaves them alone."""
    lead = 0
    while lead < min(len(before), len(after)) and before[lead] == after[lead]:
        lead += 1
    trail = 0
    while trail < min(len(before), len(after)) - lead and before[-1 - trail] == after[-1 - trail]:
        trail += 1
    return lead, trail


def reshaped(x: Array, shape: Shape) -> Array:
    """``x`` with other sizes, element by element in row-major order."""
    if x.shape == shape:
        return x
    lead, trail = _matched(x.shape, shape)
    before, after = x.shape[lead : len(x.shape) - trail], shape[lead : len(shape) - trail]

    def where(reader: Place, index: Index) -> Index:
        middle = index[lead : len(index) - trail]
        kept = index[len(index) - trail :]
        if not before:
            return (*index[:lead], *kept)
        ranges = reader.ranges
        position = ranges.flat(middle, after) if middle else ONE * 0
        return (*index[:lead], *ranges.unflat(position, before), *kept)

    return Moved(shape, x.dtype, x, where, reshape=True)


def unreshaped(x: Array) -> Array:
    """The array behind reshapes."""
    while isinstance(x, Moved) and x.reshape:
        x = x.operand
    return x


def transposed(x: Array, order: Sequence[int]) -> Array:
    """``x`` with its axes in another order."""
    if list(order) == list(range(len(order))):
        return x

    def where(reader: Place, index: Index) -> Index:
        source = list(index)
        for n, axis in enumerate(order):
            source[axis] = index[n]
        return tuple(source)

    return moved(x, tuple(x.shape[axis] for axis in order), where)
