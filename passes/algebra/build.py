"""The right side of an equation as nodes; what is made of constants alone is computed now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import WORKING_OPSET, dims, tensor_of
from ...ir.rewrite import Editor
from ...ir.symbolic import Dim, same
from .match import LIMIT, Axes, Group, Match, is_constant
from .terms import ONNX, REDUCTIONS, Number, Term, Variable

Array = np.ndarray[Any, Any]


class CannotBuild(Exception):
    """The right side has no meaning for these shapes; the message says why."""


def build(edit: Editor, match: Match) -> onnx_ir.Value:
    """Insert what takes the place of the root's output, before the root.

    Raises:
        CannotBuild: for these shapes the equation does not hold.
    """
    root = match.node.outputs[0]
    builder = _Builder(edit, match)
    value = builder.build(match.equation.replacement)
    if match.rest:
        value = builder.join(match.equation.root, [value, *match.rest])
    _check(root, value)
    return value


def _check(old: onnx_ir.Value, new: onnx_ir.Value) -> None:
    if old.dtype is not None and new.dtype is not None and old.dtype != new.dtype:
        raise CannotBuild("the element type would change")
    before, after = dims(old), dims(new)
    if before is None or after is None or len(before) != len(after) or not all(map(same, before, after)):
        raise CannotBuild("the shape would change")


class _Builder:
    def __init__(self, edit: Editor, match: Match) -> None:
        self.edit, self.match = edit, match
        self.dtype = _dtype(match)

    def build(self, term: Term) -> onnx_ir.Value:
        if isinstance(term, Number):
            return self.edit.initializer(onnx_ir.Tensor(np.asarray(term.value, self.dtype.numpy())), "number")
        if isinstance(term, Variable):
            operand = self.match.bound[term.name]
            return self.join(operand.op, operand.members) if isinstance(operand, Group) else operand
        if term.op == "*" and term.args[0] == term.args[1]:
            square = self.build(term.args[0])
            return self.edit.op("Mul", [square, square])
        values = [self.build(argument) for argument in term.args]
        if term.op in REDUCTIONS:
            return self.reduce(term.op, values[0])
        if term.op in _FOLDED and all(map(is_constant, values)):
            folded = self.fold(term.op, values)
            if folded is not None:
                return folded
        attributes = {"direction": "LEFT"} if term.op == "<<" else {}
        return self.edit.op(ONNX[term.op], values, attributes)

    def join(self, op: str, values: Sequence[onnx_ir.Value]) -> onnx_ir.Value:
        """The sum or product of several values, small ones first, constants as one."""
        ordered = sorted(values, key=_extent)
        result = ordered[0]
        for value in ordered[1:]:
            folded = self.fold(op, [result, value]) if is_constant(result) and is_constant(value) else None
            result = self.edit.op(ONNX[op], [result, value]) if folded is None else folded
        return result

    def fold(self, op: str, values: Sequence[onnx_ir.Value]) -> onnx_ir.Value | None:
        """The constant of an operator on constants, computed in float64 and rounded once; None if it is too large."""
        arrays = [np.asarray(tensor.numpy()) for v in values if (tensor := tensor_of(v)) is not None]
        dtype = arrays[0].dtype
        if dtype.kind not in "iu":
            arrays = [array.astype(np.float64) for array in arrays]
        elif op == "/":
            return None
        with np.errstate(all="ignore"):
            wide = np.asarray(_FOLDED[op](*arrays))
            result = wide.astype(dtype)
        if result.size > LIMIT:
            return None
        if dtype.kind not in "iu" and np.any(
            (np.isfinite(wide) != np.isfinite(result)) | ((wide == 0) != (result == 0))
        ):
            raise CannotBuild("a constant would overflow or vanish")
        hint = values[0].name or "constant"
        new = self.edit.initializer(onnx_ir.Tensor(result), hint)
        return new

    def reduce(self, op: str, value: onnx_ir.Value) -> onnx_ir.Value:
        axes = self.match.axes
        assert axes is not None
        shape = dims(value)
        if shape is None or len(shape) != axes.rank:
            raise CannotBuild("what is reduced would have another rank")
        if not all(same(shape[axis], size) for axis, size in zip(axes.axes, axes.sizes, strict=True)):
            raise CannotBuild("an operand is repeated along the reduced axes")
        return reduction(self.edit, ONNX[op], value, axes)


def reduction(edit: Editor, operator: str, value: onnx_ir.Value, axes: Axes) -> onnx_ir.Value:
    """A reduction in the form of the graph's opset: axes are an input since 13 (sums) and 18 (others)."""
    front = [axis + axes.rank for axis in axes.axes]
    opset = edit.graph.opset_imports.get("", WORKING_OPSET)
    inputs: list[onnx_ir.Value | None] = [value]
    attributes: dict[str, Any] = {"keepdims": int(axes.keep)}
    if opset >= (13 if operator == "ReduceSum" else 18):
        inputs.append(edit.ints(front, "axes"))
    else:
        attributes["axes"] = front
    shape: list[Dim] = []
    for axis, dim in enumerate(dims(value) or ()):
        if axis not in front:
            shape.append(dim)
        elif axes.keep:
            shape.append(1)
    return edit.op(operator, inputs, attributes, dtype=value.dtype, shape=shape)


def _dtype(match: Match) -> onnx_ir.DataType:
    """The element type of the numbers in an equation: that of the values it is about."""
    return match.node.outputs[0].dtype or onnx_ir.DataType.FLOAT


def _extent(value: onnx_ir.Value) -> tuple[bool, int, int]:
    """Constants first, then what has fewer dimensions that are not 1, then the smaller."""
    shape = dims(value) or ()
    wide = [dim for dim in shape if dim != 1]
    known = [dim for dim in wide if isinstance(dim, int)]
    return (not is_constant(value), len(wide), int(np.prod(known, dtype=np.int64)))


_FOLDED: dict[str, Any] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
}
"""Operators of two constants that are computed when they are built."""
