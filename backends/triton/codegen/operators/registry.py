"""Rules that say how an operator's outputs are made of its inputs, by domain and name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir

from .....ir.graph import attribute, tensor_of
from .....ir.symbolic import known, to_expr
from .....ir.values import Evaluator
from ..arrays import FLOATS, TYPES, Array, Number, Unfit, cast, reshaped
from ..indexing import Expr, Index, Sizes

Result: TypeAlias = "Array | Sequence[Array | None]"


@dataclass
class Operator:
    """A node about to be expressed.

    Attributes:
        node: it.
        x: its inputs as arrays; None for those left out.
        opset: of its domain.
        sizes: of the kernel.
        outer: what the inputs of the function that the node stands in are where the function is called.
    """

    node: onnx_ir.Node
    x: Sequence[Array | None]
    opset: int
    sizes: Sizes
    outer: Mapping[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Array:
        """An input that must be there."""
        value = self.get(index)
        if value is None:
            raise Unfit(f"input {index} is missing")
        return value

    def get(self, index: int) -> Array | None:
        """An optional input."""
        return self.x[index] if index < len(self.x) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return attribute(self.node, name, default)

    def value(self, index: int) -> onnx_ir.Value | None:
        """The value behind an input, outside of a function where it is an input of that."""
        found = self.node.inputs[index] if index < len(self.node.inputs) else None
        return None if found is None else self.outer.get(found, found)

    def constant(self, index: int) -> np.ndarray[Any, Any] | None:
        """The constant behind an input of at most 1024 elements; None if there is none."""
        value = self.value(index)
        tensor = tensor_of(value)
        return tensor.numpy() if tensor is not None and tensor.size <= 1024 else None

    def scalar(self, index: int) -> float | None:
        """The single number behind an input; None if it is no constant."""
        found = self.constant(index)
        return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None

    def expressions(self, name: str, index: int) -> list[Expr] | None:
        """Sizes that are an attribute in old opsets and an input in new ones, as sizes of the kernel; None if absent.

        Raises:
            Unfit: they are data.
        """
        value = self.value(index)
        if value is None:
            given = self.attr(name)
            return None if given is None else [_integer(n) for n in (given if isinstance(given, list) else [given])]
        found = Evaluator().of(value)
        if found is None or not found.complete:
            raise Unfit(f"its {name} are computed from data")
        exprs = [e for e in found.exprs if e is not None]
        if not all(e.is_Integer or e.is_nonnegative for e in exprs):
            raise Unfit(f"its {name} depend on sizes and may be negative")
        return [self.sizes.of(e) for e in exprs]

    def ints(self, name: str, index: int) -> list[int] | None:
        """The same as plain numbers.

        Raises:
            Unfit: they depend on sizes or data.
        """
        found = self.expressions(name, index)
        if found is None:
            return None
        if not all(e.is_Integer for e in found):
            raise Unfit(f"its {name} depend on sizes")
        return [int(e) for e in found]

    def shape(self, output: int = 0) -> Index:
        """The shape of an output.

        Raises:
            Unfit: it is not known.
        """
        return shape_of(self.node.outputs[output], self.sizes)

    def dtype(self, output: int = 0) -> str:
        """Triton's type of an output.

        Raises:
            Unfit: it is not known, or Triton has none.
        """
        return dtype_of(self.node.outputs[output])

    def wide(self, index: int = 0) -> Array:
        """An input in the type that it is computed with."""
        x = self[index]
        return cast(x, "float32") if x.dtype in FLOATS and x.dtype != "float64" else x

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """An axis, counted from the front."""
        axis: int = self.attr(name, default)
        return axis % max(rank, 1)


def _integer(n: int) -> Expr:
    import sympy

    return sympy.Integer(n)


def shape_of(value: onnx_ir.Value, sizes: Sizes) -> Index:
    """The shape of a value in sizes of a kernel.

    Raises:
        Unfit: a size is not known.
    """
    if value.shape is None or not all(known(d) for d in value.shape):
        raise Unfit(f"the shape of {value.name!r} is not known")
    return tuple(sizes.of(to_expr(d)) for d in value.shape)


def dtype_of(value: onnx_ir.Value) -> str:
    """Triton's type of a value.

    Raises:
        Unfit: it is not known, or Triton has none.
    """
    if value.dtype is None or value.dtype not in TYPES:
        raise Unfit(f"{value.name!r} is {'of unknown type' if value.dtype is None else value.dtype.name}")
    return TYPES[value.dtype]


Rule: TypeAlias = Callable[[Operator], Result]

EXPRESSIONS: dict[tuple[str, str], Rule] = {}
"""What generated kernels can compute. A node of another operator, or one whose rule raises :class:`Unfit`, is left to
PyTorch, or to a template."""


def rule(*names: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for some operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            EXPRESSIONS[domain, name] = function
        return function

    return register


def fusible(node: onnx_ir.Node) -> bool:
    """Whether there is a rule for the operator; whether it fits this node shows when it is applied."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type) in EXPRESSIONS


def flattened(x: Array) -> Array:
    """An array of one axis."""
    import sympy

    return reshaped(x, (sympy.Mul(*x.shape),))


def is_number(x: Array | None) -> bool:
    """Whether an array is a constant written into the kernel."""
    return isinstance(x, Number)
