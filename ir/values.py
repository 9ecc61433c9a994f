"""Symbolic values: what small tensors of sizes hold, as expressions over the named dimensions.

Imported files compute shapes at run time (``Shape -> Gather -> Mul -> Concat -> Reshape``). :func:`propagate` follows
such chains and says, element by element, what comes out. It promises:

- A known element equals what the graph computes at run time, for every size of the named dimensions for which the
  graph runs; a named dimension is an integer of at least zero, and of at least one where a slice takes or drops its
  first or last element. Nothing is guessed: what cannot be followed is unknown.
- Only integer and boolean tensors, and float tensors made from those by exact arithmetic (halves, quarters ...; sizes
  below 2**14 stay exact in float32), of at most ``LIMIT`` elements.
- Initializers that the caller may override (they are also graph inputs) are not constants.
- Nothing in the graph is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir
import sympy

from . import symbolic
from .graph import Graph, all_nodes, attribute, tensor_of
from .symbolic import UNKNOWN, Dim, known, to_dim, to_expr

LIMIT = 1024
"""Tensors of more elements are not followed."""

Array = np.ndarray[Any, Any]
_Inputs = list["SymbolicValue | None"]


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


class Evaluator:
    """Finds the symbolic values behind the values of one graph; each is worked out once and kept.

    The graph must not be edited, nor shapes be set on values already asked for, as long as an evaluator is in use.
    """

    def __init__(self) -> None:
        self._memo: dict[onnx_ir.Value, SymbolicValue | None] = {}

    def of(self, value: onnx_ir.Value | None) -> SymbolicValue | None:
        """What ``value`` holds; None if it is not a small tensor of sizes or cannot be followed."""
        if value is None:
            return None
        pending = [value]
        # A stack of its own: chains of a long graph are deeper than Python's.
        while pending:
            top = pending[-1]
            if top in self._memo:
                pending.pop()
                continue
            needs = [v for v in self._operands(top) if v not in self._memo]
            if needs:
                pending.extend(needs)
                continue
            self._memo[top] = self._compute(top)
            pending.pop()
        return self._memo[value]

    def _operands(self, value: onnx_ir.Value) -> list[onnx_ir.Value]:
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _TRANSFER or _too_large(value):
            return []
        return [v for v in node.inputs if v is not None]

    def _compute(self, value: onnx_ir.Value) -> SymbolicValue | None:
        tensor = tensor_of(value)
        if tensor is not None:
            return _from_tensor(tensor)
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or _too_large(value):
            return None
        if node.op_type in ("Shape", "Size"):
            return _sizes(node)
        transfer = _TRANSFER.get(node.op_type)
        if transfer is None:
            return None
        inputs = [self._memo.get(v) if v is not None else None for v in node.inputs]
        index = value.index() or 0
        try:
            results = transfer(node, inputs)
        except (ValueError, IndexError, TypeError, OverflowError):
            # Malformed arguments: inference and the verifier say so; here the value is simply not known.
            return None
        if results is None:
            return None
        result = results[index] if isinstance(results, list) else results
        return result if result is None or result.array.size <= LIMIT else None


def propagate(graph: Graph) -> dict[onnx_ir.Value, SymbolicValue]:
    """Symbolic values of everything in ``graph`` that is a small tensor of sizes (see the module's promises).

    Args:
        graph: shapes of its values should be inferred (:func:`~burnish.ir.infer.infer_graph`).

    Returns:
        By value (of main graph and subgraphs, initializers excepted); values of which no element is known are left out.
    """
    evaluator = Evaluator()
    found: dict[onnx_ir.Value, SymbolicValue] = {}
    for node in all_nodes(graph):
        if node.op_type not in _TRANSFER and node.op_type not in ("Shape", "Size", "Constant"):
            continue
        for value in node.outputs:
            result = evaluator.of(value)
            if result is not None and (result.array.size == 0 or any(known(e) for e in result.array.ravel())):
                found[value] = result
    return found


def _too_large(value: onnx_ir.Value) -> bool:
    """Whether type or shape already say that ``value`` is not a small tensor of sizes."""
    if value.dtype not in _FOLLOWED:
        return True
    if value.shape is None:
        # Sizes are integers; without a shape, floats are far more often activations, and following them is wasted.
        return value.dtype.is_floating_point()
    size = 1
    for dim in value.shape:
        if not isinstance(dim, int):
            return True
        size *= dim
    return size > LIMIT


_FOLLOWED = frozenset(
    (
        onnx_ir.DataType.INT64,
        onnx_ir.DataType.INT32,
        onnx_ir.DataType.BOOL,
        onnx_ir.DataType.FLOAT,
        onnx_ir.DataType.DOUBLE,
    )
)


def _from_tensor(tensor: onnx_ir.TensorProtocol) -> SymbolicValue | None:
    if tensor.size > LIMIT or tensor.dtype not in _FOLLOWED:
        return None
    data = tensor.numpy()
    array = np.empty(data.shape, dtype=object)
    flat = array.reshape(-1)
    for i, number in enumerate(data.reshape(-1).tolist()):
        flat[i] = _number(number)
    return SymbolicValue(tensor.dtype, array)


def _number(number: float | int | bool) -> Dim:
    if not isinstance(number, float):
        return int(number)
    if number.is_integer() and abs(number) < 2**24:
        return int(number)
    if not math.isfinite(number):
        return UNKNOWN
    fraction = Fraction(number)
    # Other fractions (a third) are rounded in the file, and exact arithmetic on them would differ.
    return onnx_ir.SymbolicDim(str(fraction)) if fraction.denominator <= 1024 else UNKNOWN


def _sizes(node: onnx_ir.Node) -> SymbolicValue | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    dims = list(value.shape)
    if node.op_type == "Size":
        return _value(onnx_ir.DataType.INT64, [symbolic.product(dims)], ())
    start = attribute(node, "start", 0)
    end = attribute(node, "end")
    picked = dims[start:end]
    return _value(onnx_ir.DataType.INT64, picked, (len(picked),))


def _value(dtype: onnx_ir.DataType, elements: list[Dim], shape: tuple[int, ...]) -> SymbolicValue:
    array = np.empty(shape, dtype=object)
    flat = array.reshape(-1)
    for i, element in enumerate(elements):
        flat[i] = element
    return SymbolicValue(dtype, array)


def _ints(value: SymbolicValue | None) -> list[int] | None:
    if value is None:
        return None
    elements = value.elements
    return [int(e) for e in elements if isinstance(e, int)] if all(isinstance(e, int) for e in elements) else None


Transfer = Callable[[onnx_ir.Node, _Inputs], "SymbolicValue | list[SymbolicValue | None] | None"]


def _elementwise(function: Callable[..., Dim], boolean: bool = False) -> Transfer:
    ufuncs: dict[int, Any] = {}

    def transfer(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
        arrays = []
        for value in inputs:
            if value is None:
                return None
            arrays.append(value.array)
        ufunc = ufuncs.setdefault(len(arrays), np.frompyfunc(function, len(arrays), 1))
        first = inputs[0]
        assert first is not None
        if math.prod(np.broadcast_shapes(*(a.shape for a in arrays))) > LIMIT:
            return None
        result = ufunc(*arrays)
        if not isinstance(result, np.ndarray):
            result = _value(first.dtype, [result], ()).array
        return SymbolicValue(onnx_ir.DataType.BOOL if boolean else first.dtype, result)

    return transfer


def _divide(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    left, right = inputs
    if left is None or right is None:
        return None
    whole = not left.dtype.is_floating_point()
    return _elementwise(_truncated if whole else _fraction)(node, inputs)  # type: ignore[return-value]


def _truncated(a: Dim, b: Dim) -> Dim:
    """Integer division as ONNX does it, towards zero."""
    if isinstance(a, int) and isinstance(b, int):
        return UNKNOWN if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    quotient = symbolic.floor_div(a, b)
    if symbolic.nonnegative(a) and symbolic.nonnegative(b):
        return quotient
    # Without a remainder the direction of rounding does not matter.
    exact = symbolic.exact_div(a, b)
    return exact if known(exact) and symbolic.integral(exact) else UNKNOWN


def _fraction(a: Dim, b: Dim) -> Dim:
    if (isinstance(b, int) and b == 0) or not (known(a) and known(b)):
        return UNKNOWN
    left, right = to_expr(a), to_expr(b)
    assert left is not None and right is not None
    quotient = left / right
    # A divisor that is no power of two would be rounded at run time.
    if not ((right.is_Rational and right.p & (right.p - 1) == 0) or quotient.is_integer):
        return UNKNOWN
    return to_dim(quotient)


def _modulo(a: Dim, b: Dim) -> Dim:
    return symbolic.modulo(a, b) if (isinstance(b, int) and b > 0) or symbolic.nonnegative(b) else UNKNOWN


def _mod(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    if attribute(node, "fmod", 0):
        return None
    return _elementwise(_modulo)(node, inputs)  # type: ignore[return-value]


def _negate(a: Dim) -> Dim:
    return symbolic.sub(0, a)


def _absolute(a: Dim) -> Dim:
    if isinstance(a, int):
        return abs(a)
    return a if symbolic.nonnegative(a) else UNKNOWN


def _many(function: Callable[[Dim, Dim], Dim]) -> Transfer:
    def fold(*operands: Dim) -> Dim:
        result = operands[0]
        for operand in operands[1:]:
            result = function(result, operand)
        return result

    return _elementwise(fold)


def _decide(a: Dim, b: Dim, question: Callable[[sympy.Expr], bool | None]) -> Dim:
    if not (known(a) and known(b)):
        return UNKNOWN
    difference = to_expr(symbolic.sub(a, b))
    assert difference is not None
    answer = question(difference)
    return UNKNOWN if answer is None else int(answer)


def _equal(a: Dim, b: Dim) -> Dim:
    return _decide(a, b, lambda d: d.is_zero)


def _greater(a: Dim, b: Dim) -> Dim:
    return _decide(a, b, lambda d: d.is_positive)


def _greater_equal(a: Dim, b: Dim) -> Dim:
    return _decide(a, b, lambda d: d.is_nonnegative)


def _not(a: Dim) -> Dim:
    return 1 - a if isinstance(a, int) else UNKNOWN


def _and(a: Dim, b: Dim) -> Dim:
    if a == 0 or b == 0:
        return 0
    return 1 if a == 1 and b == 1 else UNKNOWN


def _or(a: Dim, b: Dim) -> Dim:
    if a == 1 or b == 1:
        return 1
    return 0 if a == 0 and b == 0 else UNKNOWN


def _choose(condition: Dim, a: Dim, b: Dim) -> Dim:
    if isinstance(condition, int):
        return a if condition else b
    return a if symbolic.same(a, b) else UNKNOWN


def _where(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    condition, a, b = inputs
    if condition is None or a is None or b is None:
        return None
    result = np.frompyfunc(_choose, 3, 1)(condition.array, a.array, b.array)
    if not isinstance(result, np.ndarray):
        return _value(a.dtype, [result], ())
    return SymbolicValue(a.dtype, result)


def _cast(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    value = inputs[0]
    if value is None:
        return None
    target = onnx_ir.DataType(attribute(node, "to", value.dtype.value))
    if target not in _FOLLOWED:
        return None
    if target == onnx_ir.DataType.BOOL:
        convert = _truth
    elif target.is_floating_point() or not value.dtype.is_floating_point():
        return SymbolicValue(target, value.array)
    else:
        convert = _truncate
    elements = [convert(e) for e in value.elements]
    return _value(target, elements, value.shape)


def _truth(a: Dim) -> Dim:
    equal = _equal(a, 0)
    return 1 - equal if isinstance(equal, int) else UNKNOWN


def _truncate(a: Dim) -> Dim:
    """Towards zero, as a cast from float to integer rounds."""
    if isinstance(a, int) or symbolic.integral(a):
        return a
    return _floor(a) if symbolic.nonnegative(a) else UNKNOWN


def _floor(a: Dim) -> Dim:
    return symbolic.floor_div(a, 1) if known(a) else UNKNOWN


def _ceil(a: Dim) -> Dim:
    # −floor(−a): the text form of a dimension has no ceiling.
    expr = to_expr(a)
    return UNKNOWN if expr is None else to_dim(-sympy.floor(-expr))


def _same(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    return inputs[0]


def _gather(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data, indices = inputs
    picks = _ints(indices)
    if data is None or picks is None or indices is None or not data.shape:
        return None
    axis = attribute(node, "axis", 0) % len(data.shape)
    index = np.array(picks, dtype=np.int64).reshape(indices.shape)
    result = np.take(data.array, index, axis=axis)
    return _wrap(data.dtype, result)


def _wrap(dtype: onnx_ir.DataType, result: Any) -> SymbolicValue:
    return SymbolicValue(dtype, result) if isinstance(result, np.ndarray) else _value(dtype, [result], ())


def _concat(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    parts = []
    for i, part in enumerate(inputs):
        if part is None:
            part = _unknown(node.inputs[i])
        if part is None:
            return None
        parts.append(part)
    return SymbolicValue(parts[0].dtype, np.concatenate([p.array for p in parts], axis=attribute(node, "axis", 0)))


def _unknown(value: onnx_ir.Value | None) -> SymbolicValue | None:
    """A value of known small shape and unknown elements: beside known ones in a Concat it still has its place."""
    if value is None or value.shape is None or value.dtype not in _FOLLOWED:
        return None
    shape = [d for d in value.shape if isinstance(d, int)]
    size = math.prod(shape)
    if len(shape) != len(value.shape) or size > LIMIT:
        return None
    return _value(value.dtype, [UNKNOWN] * size, tuple(shape))


def _slice(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data = inputs[0]
    if data is None:
        return None
    if len(inputs) > 1:
        starts, ends = _ints(inputs[1]), _ints(inputs[2])
        axes = _ints(inputs[3]) if len(inputs) > 3 and node.inputs[3] is not None else None
        steps = _ints(inputs[4]) if len(inputs) > 4 and node.inputs[4] is not None else None
        if len(inputs) > 3 and node.inputs[3] is not None and axes is None:
            return None
        if len(inputs) > 4 and node.inputs[4] is not None and steps is None:
            return None
    else:
        starts, ends, axes, steps = (attribute(node, name) for name in ("starts", "ends", "axes", "steps"))
    if starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index: list[slice] = [slice(None)] * len(data.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = slice_positions(data.shape[axis], start, end, step)
        # A range that runs down to the first element ends at -1, which a Python slice would read as "the last".
        index[axis] = slice(places.start, places.stop if places.stop >= 0 else None, step) if places else slice(0, 0)
    return SymbolicValue(data.dtype, data.array[tuple(index)])


def slice_positions(size: int, start: int, end: int, step: int) -> range:
    """The positions that ONNX's ``Slice`` takes of an axis of ``size``; bounds are clamped a little unlike Python's."""
    if size == 0 or step == 0:
        return range(0)
    first, last = (start + size if start < 0 else start), (end + size if end < 0 else end)
    if step > 0:
        return range(min(max(first, 0), size), min(max(last, 0), size), step)
    return range(min(max(first, 0), size - 1), min(max(last, -1), size), step)


def _axes(node: onnx_ir.Node, inputs: _Inputs) -> tuple[int, ...] | None:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = _ints(inputs[1])
        if axes is None:
            raise ValueError("axes unknown")
    else:
        axes = attribute(node, "axes")
    return None if axes is None else tuple(axes)


def _squeeze(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data = inputs[0]
    return None if data is None else SymbolicValue(data.dtype, np.squeeze(data.array, _axes(node, inputs)))


def _unsqueeze(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data = inputs[0]
    return None if data is None else SymbolicValue(data.dtype, np.expand_dims(data.array, _axes(node, inputs) or ()))


def _reshape(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data, target = inputs[0], _ints(inputs[1])
    if data is None or target is None:
        return None
    shape = [
        data.shape[i] if size == 0 and not attribute(node, "allowzero", 0) else size for i, size in enumerate(target)
    ]
    return SymbolicValue(data.dtype, data.array.reshape(shape))


def _transpose(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data = inputs[0]
    return None if data is None else SymbolicValue(data.dtype, data.array.transpose(attribute(node, "perm")))


def _expand(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data, target = inputs[0], _ints(inputs[1])
    if data is None or target is None or math.prod(target) > LIMIT:
        return None
    shape = np.broadcast_shapes(data.shape, tuple(target))
    return SymbolicValue(data.dtype, np.broadcast_to(data.array, shape).copy())


def _constant_of_shape(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    shape = _ints(inputs[0])
    tensor = attribute(node, "value")
    if shape is None or math.prod(shape) > LIMIT:
        return None
    if tensor is None:
        return _value(onnx_ir.DataType.FLOAT, [0] * math.prod(shape), tuple(shape))
    if tensor.dtype not in _FOLLOWED:
        return None
    return _value(tensor.dtype, [_number(tensor.numpy().reshape(-1)[0].item())] * math.prod(shape), tuple(shape))


def _range(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    limits = [_ints(v) for v in inputs]
    first = inputs[0]
    if first is None or any(v is None for v in limits) or first.dtype.is_floating_point():
        return None
    start, stop, step = (v[0] for v in limits if v is not None)
    numbers = range(start, stop, step)
    return None if len(numbers) > LIMIT else _value(first.dtype, list(numbers), (len(numbers),))


def _reduce(function: Callable[[Dim, Dim], Dim], empty: Dim) -> Transfer:
    def transfer(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
        data = inputs[0]
        if data is None:
            return None
        axes = _axes(node, inputs)
        if axes is None or not axes:
            if attribute(node, "noop_with_empty_axes", 0):
                return data
            axes = tuple(range(len(data.shape)))
        axes = tuple(a % len(data.shape) for a in axes)
        kept = [a for a in range(len(data.shape)) if a not in axes]
        rows = data.array.transpose([*kept, *axes]).reshape([*(data.shape[a] for a in kept), -1])
        out = np.empty(rows.shape[:-1], dtype=object)
        for index in np.ndindex(*out.shape):
            result = empty
            for i, element in enumerate(rows[index]):
                result = element if i == 0 else function(result, element)
            out[index] = result
        if attribute(node, "keepdims", 1):
            out = out.reshape([1 if a in axes else size for a, size in enumerate(data.shape)])
        return SymbolicValue(data.dtype, out)

    return transfer


def _split(node: onnx_ir.Node, inputs: _Inputs) -> list[SymbolicValue | None] | None:
    data = inputs[0]
    if data is None:
        return None
    axis = attribute(node, "axis", 0)
    sizes = attribute(node, "split")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = _ints(inputs[1])
        if sizes is None:
            return None
    if sizes is None:
        each = -(-data.shape[axis] // len(node.outputs))
        points = [each * (i + 1) for i in range(len(node.outputs) - 1)]
    else:
        points = list(np.cumsum(sizes[:-1]))
    return [SymbolicValue(data.dtype, part) for part in np.split(data.array, points, axis=axis)]


def _tile(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data, repeats = inputs[0], _ints(inputs[1])
    if data is None or repeats is None or data.array.size * math.prod(repeats) > LIMIT:
        return None
    return SymbolicValue(data.dtype, np.tile(data.array, repeats))


_TRANSFER: dict[str, Transfer] = {
    "Abs": _elementwise(_absolute),
    "Add": _elementwise(symbolic.add),
    "And": _elementwise(_and, boolean=True),
    "Cast": _cast,
    "Ceil": _elementwise(_ceil),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _elementwise(_equal, boolean=True),
    "Expand": _expand,
    "Floor": _elementwise(_floor),
    "Gather": _gather,
    "Greater": _elementwise(_greater, boolean=True),
    "GreaterOrEqual": _elementwise(_greater_equal, boolean=True),
    "Identity": _same,
    "Less": _elementwise(lambda a, b: _greater(b, a), boolean=True),
    "LessOrEqual": _elementwise(lambda a, b: _greater_equal(b, a), boolean=True),
    "Max": _many(symbolic.maximum),
    "Min": _many(symbolic.minimum),
    "Mod": _mod,
    "Mul": _elementwise(symbolic.mul),
    "Neg": _elementwise(_negate),
    "Not": _elementwise(_not, boolean=True),
    "Or": _elementwise(_or, boolean=True),
    "Range": _range,
    "ReduceMax": _reduce(symbolic.maximum, UNKNOWN),
    "ReduceMin": _reduce(symbolic.minimum, UNKNOWN),
    "ReduceProd": _reduce(symbolic.mul, 1),
    "ReduceSum": _reduce(symbolic.add, 0),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _elementwise(symbolic.sub),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
