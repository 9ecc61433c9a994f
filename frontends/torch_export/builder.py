"""What translation rules build with: nodes, constants, casts, and sizes as graph values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx_ir
import sympy
import torch
from onnx_ir import DataType, Value
from torch.utils._sympy import functions as torch_functions

from ...ir.errors import UnsupportedError
from ...ir.graph import MODULE, SOURCE, WORKING_OPSET
from ...ir.infer import infer
from ...ir.symbolic import Dim
from .dtypes import from_torch, numpy_type
from .expressions import Dimensions, Size

Scalar: TypeAlias = bool | int | float | complex
Number: TypeAlias = Scalar | torch.SymInt | torch.SymFloat | torch.SymBool

_ELEMENTWISE = frozenset(
    "Abs Add And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Cos Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "IsInf IsNaN LeakyRelu Log LogSoftmax Max Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign "
    "Sin Softmax Softplus Softsign Sqrt Sub Tan Tanh ThresholdedRelu Where Xor Asin Acos Atan Sinh Cosh Asinh Acosh "
    "Atanh Celu Equal Greater GreaterOrEqual Less LessOrEqual Cast Clip Trilu BitShift CumSum PRelu".split()
)
_COMPARISONS = frozenset("Equal Greater GreaterOrEqual Less LessOrEqual IsInf IsNaN".split())


class Builder:
    """Adds nodes to the graph under construction, in the name of one FX node at a time.

    Attributes:
        dimensions: maps symbolic sizes to named dimensions.
        meta: the fake tensor (or tensors, or number) that the current FX node results in.
    """

    def __init__(self, dimensions: Dimensions) -> None:
        self.dimensions = dimensions
        self.nodes: list[onnx_ir.Node] = []
        self.initializers: list[Value] = []
        self.meta: Any = None
        self._origin, self._module, self._source = "input", "", ""
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[object, ...], Value] = {}
        self._sizes: dict[sympy.Expr, Value] = {}
        self._roots: dict[sympy.Expr, Callable[[], Value]] = {}
        self._derived: dict[sympy.Expr, Callable[[], Value]] = {}

    # Names and provenance.

    def begin(self, origin: str, module: str, source: str, meta: Any) -> None:
        """Say which FX node the next graph nodes come from."""
        self._origin, self._module, self._source, self.meta = origin, module, source, meta

    def state(self) -> tuple[str, str, str, Any]:
        """What :meth:`begin` was last told, to come back to it."""
        return self._origin, self._module, self._source, self.meta

    def fresh(self, hint: str) -> str:
        """A name that nothing in the graph has."""
        count = self._names.get(hint)
        if count is None:
            self._names[hint] = 0
            return hint
        while True:
            count += 1
            name = f"{hint}_{count}"
            if name not in self._names:
                self._names[hint] = count
                self._names[name] = 0
                return name

    @property
    def where(self) -> str:
        """Module path and FX node being translated, for messages."""
        return f"{self._module} ({self._source})" if self._module else self._source

    def unsupported(self, what: str) -> UnsupportedError:
        """The error for a case that a rule does not cover."""
        return UnsupportedError(what, where=self.where)

    # The current FX node.

    @property
    def spatial(self) -> int:
        """Number of spatial dimensions, from an operator's name such as ``aten.max_pool2d.default``."""
        found = re.search(r"(\d)d(?![0-9a-z])", self._source.split(": ")[-1])
        assert found is not None, self._source
        return int(found[1])

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Dimensions of the current FX node's result."""
        return self.dimensions.shape(self.meta.shape)

    @property
    def dtype(self) -> DataType:
        """Element type of the current FX node's result."""
        return from_torch(self.meta.dtype)

    # Nodes.

    def op(
        self,
        op_type: str,
        *inputs: Value | None,
        dtype: DataType | None = None,
        shape: Sequence[Dim] | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node of one output.

        Args:
            op_type: an operator of the working opset.
            inputs: its inputs; None for an optional one left out.
            dtype: element type of the result; that of the first input if not given.
            shape: dimensions of the result; inferred if not given.
            attributes: its attributes; those that are None are left out.
        """
        (value,) = self.ops(op_type, inputs, 1, attributes)
        first = next(v for v in inputs if v is not None) if inputs else None
        if dtype is None and op_type in _COMPARISONS:
            dtype = DataType.BOOL
        if dtype is None and first is not None:
            dtype = (inputs[1] if op_type == "Where" else first).dtype  # type: ignore[union-attr]
        if shape is None and op_type in _ELEMENTWISE:
            shape = broadcast([dims(v) for v in inputs if v is not None])
        if dtype is not None:
            value.type = onnx_ir.TensorType(dtype)
        if shape is not None:
            value.shape = onnx_ir.Shape(shape)
        else:
            node = value.producer()
            assert node is not None
            infer(node, WORKING_OPSET)
        return value

    def ops(
        self, op_type: str, inputs: Sequence[Value | None], outputs: int, attributes: dict[str, Any]
    ) -> Sequence[Value]:
        """Add a node of several outputs, whose types the caller sets."""
        name = self.fresh(f"{self._origin}/{op_type}")
        metadata = {SOURCE: self._source}
        if self._module:
            metadata[MODULE] = self._module
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        given = {k: v for k, v in attributes.items() if v is not None}
        node = onnx_ir.Node(
            "",
            op_type,
            inputs,
            attributes=onnx_ir.convenience.convert_attributes(given) if given else (),
            num_outputs=outputs,
            name=name,
            metadata_props=metadata,
        )
        for i, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}.{i}"
        self.nodes.append(node)
        return node.outputs

    # Constants.

    def constant(self, array: np.ndarray[Any, Any], hint: str = "constant") -> Value:
        """An initializer of a small array, shared between uses of equal arrays."""
        array = np.asarray(array)  # not ascontiguousarray, which makes a vector of a scalar
        key = (array.dtype.str, str(array.dtype), array.shape, array.tobytes())
        value = self._constants.get(key)
        if value is None:
            value = self.initializer(onnx_ir.Tensor(array), hint)
            self._constants[key] = value
        return value

    def initializer(self, tensor: onnx_ir.TensorProtocol, name: str) -> Value:
        """A new initializer."""
        value = Value(
            name=self.fresh(name),
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape([int(n) for n in tensor.shape]),  # type: ignore[arg-type]
            const_value=tensor,
        )
        self.initializers.append(value)
        return value

    def ints(self, values: int | Sequence[int]) -> Value:
        """An int64 constant: a scalar from an int, a vector from a sequence."""
        return self.constant(np.asarray(values, dtype=np.int64), "ints")

    def scalar(self, number: Number, dtype: DataType | None) -> Value:
        """A number as a 0-d value of ``dtype``; a symbolic one is computed in the graph."""
        assert dtype is not None
        if isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            if number.node.expr.is_number:
                number = float(number.node.expr) if isinstance(number, torch.SymFloat) else int(number.node.expr)
            else:
                expr = number.node.expr
                flat = self._size(expr) if isinstance(number, torch.SymInt) else self._real(expr)
                return self.cast(self.op("Squeeze", flat, self.ints([0]), shape=[]), dtype)
        target = numpy_type(dtype)
        if target.kind in "iu" and isinstance(number, float):
            number = int(number)
        with np.errstate(over="ignore"):
            return self.constant(np.asarray(number).astype(target), "scalar")

    # Element types.

    def cast(self, value: Value, dtype: DataType) -> Value:
        """``value`` in another element type."""
        return value if value.dtype == dtype else self.op("Cast", value, dtype=dtype, to=int(dtype))

    # Sizes.

    def bind(self, size: Size, make: Callable[[], Value]) -> None:
        """Say where the size behind a symbol comes from: ``make()`` returns it as an int64 vector of one."""
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
            self._roots.setdefault(size.node.expr, make)

    def bind_input(self, value: Value, shape: Sequence[Size]) -> None:
        """Let the symbols among the sizes of a graph input come from its shape."""
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                continue
            expr = size.node.expr
            if expr.is_Symbol:
                self._roots.setdefault(expr, partial(self._dimension, value, axis))
            elif len(expr.free_symbols) == 1:
                # A derived dimension such as 2·s + 1.
                (symbol,) = expr.free_symbols
                factor, rest = expr.coeff(symbol, 1), expr.coeff(symbol, 0)
                if factor.is_Integer and rest.is_Integer and sympy.expand(factor * symbol + rest - expr) == 0:

                    def solve(v: Value = value, a: int = axis, f: int = int(factor), r: int = int(rest)) -> Value:
                        size = self.op("Sub", self._dimension(v, a), self.ints([r]))
                        return self.op("Div", size, self.ints([f]))

                    self._derived.setdefault(symbol, solve)

    def _dimension(self, value: Value, axis: int) -> Value:
        return self.op("Shape", value, dtype=DataType.INT64, shape=[1], start=axis, end=axis + 1)

    def size(self, dim: Dim) -> Value:
        """A dimension as an int64 vector of one."""
        return self.ints([dim]) if isinstance(dim, int) else self._size(self.dimensions.expression(dim))

    def sizes(self, wanted: Sequence[Dim]) -> Value:
        """Dimensions as an int64 vector."""
        if all(isinstance(d, int) for d in wanted):
            return self.ints([int(d) for d in wanted])  # type: ignore[arg-type]
        parts: list[Value] = []
        run: list[int] = []
        for dim in wanted:
            if isinstance(dim, int):
                run.append(dim)
                continue
            if run:
                parts.append(self.ints(run))
                run = []
            parts.append(self.size(dim))
        if run:
            parts.append(self.ints(run))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, shape=[len(wanted)], axis=0)

    def index(self, number: Size) -> Value:
        """An int or symbolic int, negative ones included, as an int64 vector of one."""
        return self.ints([number]) if isinstance(number, int) else self._size(number.node.expr)

    def _size(self, expr: sympy.Expr) -> Value:
        found = self._sizes.get(expr)
        if found is None:
            found = self._compute(expr)
            self._sizes[expr] = found
        return found

    def _compute(self, expr: sympy.Expr) -> Value:
        if expr.is_Integer:
            return self.ints([int(expr)])
        if expr.is_Symbol:
            make = self._roots.get(expr) or self._derived.get(expr)
            if make is None:
                raise self.unsupported(f"the size {expr} does not follow from the inputs' shapes")
            return make()
        if isinstance(expr, sympy.Add):
            return self._fold("Add", expr.args)
        if isinstance(expr, sympy.Mul):
            return self._fold("Mul", expr.args)
        if isinstance(expr, sympy.Pow) and expr.args[1].is_Integer and expr.args[1] > 0:
            return self._fold("Mul", [expr.args[0]] * int(expr.args[1]))
        if isinstance(expr, torch_functions.PowByNatural):
            return self.op("Pow", self._size(expr.args[0]), self._size(expr.args[1]))
        if isinstance(expr, (torch_functions.FloorDiv, torch_functions.CleanDiv)):
            top, bottom = self._size(expr.args[0]), self._size(expr.args[1])
            if not expr.args[0].is_nonnegative:
                top = self.op("Sub", top, self.op("Mod", top, bottom))
            return self.op("Div", top, bottom)
        if isinstance(expr, (torch_functions.Mod, torch_functions.PythonMod)):
            return self.op("Mod", self._size(expr.args[0]), self._size(expr.args[1]))
        if isinstance(expr, (sympy.Max, torch_functions.Max)):
            return self._fold("Max", expr.args)
        if isinstance(expr, (sympy.Min, torch_functions.Min)):
            return self._fold("Min", expr.args)
        rounding = {
            torch_functions.CeilToInt: "Ceil",
            torch_functions.FloorToInt: "Floor",
            torch_functions.RoundToInt: "Round",
            torch_functions.TruncToInt: None,
        }
        if type(expr) in rounding:
            real, op_type = self._real(expr.args[0]), rounding[type(expr)]
            return self.cast(real if op_type is None else self.op(op_type, real), DataType.INT64)
        raise self.unsupported(f"the size {expr} cannot be expressed in ONNX")

    def _real(self, expr: sympy.Expr) -> Value:
        """A real expression over sizes as a float64 vector of one."""
        if expr.is_number:
            return self.constant(np.asarray([float(expr)]), "real")
        if isinstance(expr, (torch_functions.FloatTrueDiv, torch_functions.IntTrueDiv)):
            return self.op("Div", self._real(expr.args[0]), self._real(expr.args[1]))
        if isinstance(expr, torch_functions.ToFloat):
            return self.cast(self._size(expr.args[0]), DataType.DOUBLE)
        if isinstance(expr, torch_functions.FloatPow):
            return self.op("Pow", self._real(expr.args[0]), self._real(expr.args[1]))
        if isinstance(expr, torch_functions.OpaqueUnaryFn_sqrt):
            return self.op("Sqrt", self._real(expr.args[0]))
        if isinstance(expr, (sympy.Add, sympy.Mul)) and not expr.is_integer:
            result = self._real(expr.args[0])
            for arg in expr.args[1:]:
                result = self.op("Add" if isinstance(expr, sympy.Add) else "Mul", result, self._real(arg))
            return result
        return self.cast(self._size(expr), DataType.DOUBLE)

    def _fold(self, op_type: str, args: Sequence[sympy.Expr]) -> Value:
        result = self._size(args[0])
        for arg in args[1:]:
            result = self.op(op_type, result, self._size(arg), shape=[1])
        return result


def dims(value: Value) -> tuple[Dim, ...]:
    """The dimensions of a value that the importer made, which are always set."""
    assert value.shape is not None, value.name
    return tuple(value.shape)


def fixed(dim: Dim) -> int:
    """A dimension that has to be a number.

    Raises:
        UnsupportedError: it is symbolic.
    """
    if not isinstance(dim, int):
        raise UnsupportedError(f"the size {dim} must be known when compiling", fix="leave that dimension static")
    return dim


def rank(value: Value) -> int:
    """The number of dimensions."""
    return len(dims(value))


def broadcast(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """The shape that operands of these shapes broadcast to."""
    result: list[Dim] = []
    width = max(len(shape) for shape in shapes)
    for i in range(-width, 0):
        chosen: Dim = 1
        for shape in shapes:
            if len(shape) < -i:
                continue
            dim = shape[i]
            if isinstance(dim, int):
                if dim != 1:
                    chosen = dim
            elif chosen == 1:
                chosen = dim
        result.append(chosen)
    return tuple(result)
