"""How symbolic values pass through operators: one function per ONNX operator of shape arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx_ir
import sympy

from . import symbolic
from .graph import attribute
from .symbolic import UNKNOWN, Dim, known, to_dim, to_expr
from .symbolic_value import FOLLOWED, LIMIT, SymbolicValue, as_ints, element, from_elements

_Inputs: TypeAlias = "list[SymbolicValue | None]"


def sizes_of(node: onnx_ir.Node) -> SymbolicValue | None:
    """What ``Shape`` and ``Size`` compute, from the shape of their input."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    dims = list(value.shape)
    if node.op_type == "Size":
        return from_elements(onnx_ir.DataType.INT64, [symbolic.product(dims)], ())
    start = attribute(node, "start", 0)
    end = attribute(node, "end")
    picked = dims[start:end]
    return from_elements(onnx_ir.DataType.INT64, picked, (len(picked),))


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
            result = from_elements(first.dtype, [result], ()).array
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
        return from_elements(a.dtype, [result], ())
    return SymbolicValue(a.dtype, result)


def _cast(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    value = inputs[0]
    if value is None:
        return None
    target = onnx_ir.DataType(attribute(node, "to", value.dtype.value))
    if target not in FOLLOWED:
        return None
    if target == onnx_ir.DataType.BOOL:
        convert = _truth
    elif target.is_floating_point() or not value.dtype.is_floating_point():
        return SymbolicValue(target, value.array)
    else:
        convert = _truncate
    elements = [convert(e) for e in value.elements]
    return from_elements(target, elements, value.shape)


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
    picks = as_ints(indices)
    if data is None or picks is None or indices is None or not data.shape:
        return None
    axis = attribute(node, "axis", 0) % len(data.shape)
    index = np.array(picks, dtype=np.int64).reshape(indices.shape)
    result = np.take(data.array, index, axis=axis)
    return _wrap(data.dtype, result)


def _wrap(dtype: onnx_ir.DataType, result: Any) -> SymbolicValue:
    return SymbolicValue(dtype, result) if isinstance(result, np.ndarray) else from_elements(dtype, [result], ())


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
    if value is None or value.shape is None or value.dtype not in FOLLOWED:
        return None
    shape = [d for d in value.shape if isinstance(d, int)]
    size = math.prod(shape)
    if len(shape) != len(value.shape) or size > LIMIT:
        return None
    return from_elements(value.dtype, [UNKNOWN] * size, tuple(shape))


def _slice(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data = inputs[0]
    if data is None:
        return None
    if len(inputs) > 1:
        starts, ends = as_ints(inputs[1]), as_ints(inputs[2])
        axes = as_ints(inputs[3]) if len(inputs) > 3 and node.inputs[3] is not None else None
        steps = as_ints(inputs[4]) if len(inputs) > 4 and node.inputs[4] is not None else None
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
        axes = as_ints(inputs[1])
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
    data, target = inputs[0], as_ints(inputs[1])
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
    data, target = inputs[0], as_ints(inputs[1])
    if data is None or target is None or math.prod(target) > LIMIT:
        return None
    shape = np.broadcast_shapes(data.shape, tuple(target))
    return SymbolicValue(data.dtype, np.broadcast_to(data.array, shape).copy())


def _constant_of_shape(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    shape = as_ints(inputs[0])
    tensor = attribute(node, "value")
    if shape is None or math.prod(shape) > LIMIT:
        return None
    if tensor is None:
        return from_elements(onnx_ir.DataType.FLOAT, [0] * math.prod(shape), tuple(shape))
    if tensor.dtype not in FOLLOWED:
        return None
    return from_elements(tensor.dtype, [element(tensor.numpy().reshape(-1)[0].item())] * math.prod(shape), tuple(shape))


def _range(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    limits = [as_ints(v) for v in inputs]
    first = inputs[0]
    if first is None or any(v is None for v in limits) or first.dtype.is_floating_point():
        return None
    start, stop, step = (v[0] for v in limits if v is not None)
    numbers = range(start, stop, step)
    return None if len(numbers) > LIMIT else from_elements(first.dtype, list(numbers), (len(numbers),))


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
            for i, item in enumerate(rows[index]):
                result = item if i == 0 else function(result, item)
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
        sizes = as_ints(inputs[1])
        if sizes is None:
            return None
    if sizes is None:
        each = -(-data.shape[axis] // len(node.outputs))
        points = [each * (i + 1) for i in range(len(node.outputs) - 1)]
    else:
        points = list(np.cumsum(sizes[:-1]))
    return [SymbolicValue(data.dtype, part) for part in np.split(data.array, points, axis=axis)]


def _tile(node: onnx_ir.Node, inputs: _Inputs) -> SymbolicValue | None:
    data, repeats = inputs[0], as_ints(inputs[1])
    if data is None or repeats is None or data.array.size * math.prod(repeats) > LIMIT:
        return None
    return SymbolicValue(data.dtype, np.tile(data.array, repeats))


TRANSFER: dict[str, Transfer] = {
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
