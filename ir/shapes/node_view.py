"""What a shape rule sees of a node, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir

from ..graph import attribute
from ..symbolic import UNKNOWN, Dim, Dims, capped, contradict, known, merge, same
from ..values import Evaluator, SymbolicValue

DataType = onnx_ir.DataType

Typed: TypeAlias = tuple["onnx_ir.DataType | None", "Dims | None"]
"""Element type and dimensions of one output; None for what is not known."""

NOTHING: Typed = (None, None)


class ShapeError(Exception):
    """The inputs of a node contradict its operator."""


class View:
    """One node with what is known of its inputs."""

    __slots__ = ("evaluator", "node", "opset")

    def __init__(self, node: onnx_ir.Node, opset: int, evaluator: Evaluator) -> None:
        self.node, self.opset, self.evaluator = node, opset, evaluator

    def input(self, i: int) -> onnx_ir.Value | None:
        """Input ``i``; None if it is left out."""
        inputs = self.node.inputs
        return inputs[i] if i < len(inputs) else None

    def dtype(self, i: int) -> onnx_ir.DataType | None:
        """Element type of input ``i``."""
        value = self.input(i)
        return None if value is None else value.dtype

    def common_dtype(self, *positions: int) -> onnx_ir.DataType | None:
        """The element type that these inputs must share; raises ShapeError if two differ."""
        found: onnx_ir.DataType | None = None
        for i in positions:
            dtype = self.dtype(i)
            if dtype is None or dtype == found:
                continue
            if found is not None:
                raise ShapeError(f"inputs of types {found.name} and {dtype.name}")
            found = dtype
        return found

    def dims(self, i: int) -> Dims | None:
        """Dimensions of input ``i``."""
        value = self.input(i)
        if value is None:
            return None
        shape = value.shape
        return None if shape is None else shape.dims

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default``."""
        return attribute(self.node, name, default)

    def value(self, i: int) -> SymbolicValue | None:
        """What input ``i`` holds, if it is a small tensor of sizes."""
        return self.evaluator.of(self.input(i))

    def sizes(self, i: int) -> list[Dim] | None:
        """Elements of input ``i`` as dimensions (unknown ones included); None if nothing can be said."""
        value = self.value(i)
        if value is not None:
            return list(value.elements)
        dims = self.dims(i)
        if dims is not None and len(dims) == 1 and isinstance(dims[0], int) and dims[0] <= 64:
            return [UNKNOWN] * dims[0]
        return None

    def ints(self, i: int) -> list[int] | None:
        """Elements of input ``i`` if all are plain ints."""
        value = self.value(i)
        if value is None:
            return None
        elements = value.elements
        return [e for e in elements if isinstance(e, int)] if all(isinstance(e, int) for e in elements) else None

    def axes(self, position: int, name: str = "axes") -> tuple[list[int] | None, bool]:
        """Axes given as an input (newer opsets) or attribute: (axes or None if absent, whether they are known)."""
        if self.input(position) is not None:
            axes = self.ints(position)
            return axes, axes is not None
        return self.attr(name), True


Rule: TypeAlias = Callable[[View], "Sequence[Typed] | None"]
"""A rule answers with one ``Typed`` per output (fewer: the rest is unknown), or None to leave it to ONNX."""

RULES: dict[tuple[str, str], Rule] = {}
"""Shape rules by (domain, operator)."""


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for operators of one domain."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[domain, op_type] = function
        return function

    return register


def normalize(axis: int, rank: int) -> int:
    """A possibly negative axis as one from the front."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} is outside a tensor of {rank} dimensions")
    return axis % rank


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The size that two broadcast dimensions give; unknown if neither is 1, a number, nor equal to the other."""
    if a is b:
        return a
    if isinstance(a, int) and isinstance(b, int):
        if a == b or b == 1:
            return a
        if a == 1:
            return b
        raise ShapeError(f"dimensions {a} and {b} do not broadcast")
    if isinstance(a, int):
        return b if a == 1 else a
    if isinstance(b, int):
        return a if b == 1 else b
    if same(a, b) or capped(b, a):
        return a
    return b if capped(a, b) else UNKNOWN


def broadcast(*shapes: Dims | None) -> Dims | None:
    """The shape that shapes broadcast to; None if a rank is unknown.

    Raises:
        ShapeError: if they do not broadcast.
    """
    result: Dims = ()
    for shape in shapes:
        if shape is None:
            return None
        if shape == result:
            continue
        if len(shape) < len(result):
            shape = (1,) * (len(result) - len(shape)) + shape
        elif len(shape) > len(result):
            result = (1,) * (len(shape) - len(result)) + result
        result = tuple(map(broadcast_dim, result, shape))
    return result


def unify(*shapes: Dims | None) -> Dims | None:
    """The common shape of tensors that must have the same one; None if none is known."""
    result: Dims | None = None
    for shape in shapes:
        if shape is None:
            continue
        if result is None:
            result = shape
        elif len(result) != len(shape):
            raise ShapeError(f"shapes {show(result)} and {show(shape)} differ in rank")
        else:
            result = tuple(map(unify_dim, result, shape))
    return result


def unify_dim(a: Dim, b: Dim) -> Dim:
    """Two dimensions that must be equal as one."""
    if contradict(a, b):
        raise ShapeError(f"dimensions {show_dim(a)} and {show_dim(b)} must be equal")
    return merge(a, b)


def show_dim(dim: Dim | None) -> str:
    """A dimension as text, ``?`` if unknown."""
    if isinstance(dim, int):
        return str(dim)
    return "?" if dim is None or not known(dim) else str(dim.value)


def show(dims: Sequence[Dim] | None) -> str:
    """Dimensions as text; ``…`` for an unknown rank."""
    return "[…]" if dims is None else f"[{', '.join(map(show_dim, dims))}]"
