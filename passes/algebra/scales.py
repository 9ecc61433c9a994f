"""Constant factors and shifts around linear operators become part of their weights.

``(x·W + b)·s = x·(W·s) + b·s``, through whatever only moves elements between the two; ``(x·γ + β)·W + b =
x·(diag(γ)·W) + (β·W + b)``. A factor that is a power of two changes no bit (short of numbers too small to be normal);
others round the weights once more and are folded only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, constant, dims, is_op, module_path, sizes_of, tensor_of
from ...ir.rewrite import Editor
from ...ir.symbolic import same
from ...ir.weights import lazy
from ..base import Outcome

Array = np.ndarray[Any, Any]

FLOATS = frozenset(onnx_ir.DataType[name] for name in "FLOAT16 BFLOAT16 FLOAT DOUBLE".split())
_SMALL = 1 << 16
"""Elements; scaled at once, larger weights when they are read."""
_EXTREME = 1e6
"""Larger factors, and smaller ones than its inverse, could make a weight overflow or vanish."""
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Expand", "Tile", "Gather")
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMax", "ReduceMin")
"""``f(s·x) = s·f(x)`` for s > 0."""
_AFTER, _BEFORE, _SHIFT = "(x @ W) * s => x @ (W * s)", "(x * s) @ W => x @ (s * W)", "(x + b) @ W => x @ W + b @ W"


def fold_scales(graph: Graph, reassociate: bool, outcome: Outcome) -> None:
    """Fold what can be folded in the main graph, in place; tell what only ``reassociate`` would fold."""
    edit = Editor(graph, _AFTER)
    unused = 0
    for node in list(graph.graph):
        if node.graph is None or not is_op(node, "Mul", "Div") or node.outputs[0].dtype not in FLOATS:
            continue
        unused += _after(edit, node, reassociate, outcome)
    for node in list(graph.graph):
        if node.graph is None or not is_op(node, "Add", "Mul", "Sub") or node.outputs[0].dtype not in FLOATS:
            continue
        unused += _before(edit, node, reassociate, outcome)
    if unused:
        outcome.missed("", f"{_AFTER}: {unused} places, not exact; reassociate=True uses it", equation=_AFTER)


def power_of_two(array: Array) -> bool:
    """Whether every number is ±2ⁿ, so that products with it are exact."""
    mantissa, _ = np.frexp(np.abs(array.astype(np.float64)))
    return bool(array.size and np.all(np.isfinite(array.astype(np.float64))) and np.all(mantissa == 0.5))


def _keeps_bits(array: Array, value: onnx_ir.Value) -> bool:
    """Whether weights multiplied by ``array`` lose nothing: those of float16 are soon too small to be normal."""
    return power_of_two(array) and value.dtype != onnx_ir.DataType.FLOAT16


@dataclass(frozen=True)
class _Factor:
    """A constant that something is multiplied by: one number, or one for each place of the last axis."""

    array: Array

    @property
    def single(self) -> bool:
        return self.array.ndim == 0


def _factor(node: onnx_ir.Node) -> tuple[onnx_ir.Value, _Factor] | None:
    """The value that a Mul or Div scales by a constant without changing its shape, and the factor."""
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None:
        return None
    candidates = [(a, b)] if is_op(node, "Div") else [(a, b), (b, a)]
    for value, scale in candidates:
        array = _vector(scale, value, node.outputs[0])
        if array is None or tensor_of(value) is not None:
            continue
        if not np.all((np.abs(array) >= 1 / _EXTREME) & (np.abs(array) <= _EXTREME)):
            return None
        if is_op(node, "Div"):
            array = 1.0 / array
        return value, _Factor(array)
    return None


def _vector(constant_: onnx_ir.Value, value: onnx_ir.Value, out: onnx_ir.Value) -> Array | None:
    """A constant as float64, [] or [n] along the last axis of ``value``; None for any other shape."""
    array, shape, result = constant(constant_, limit=_SMALL), dims(value), dims(out)
    if array is None or shape is None or result is None or len(shape) != len(result):
        return None
    if not all(map(same, shape, result)):
        return None
    wide = array.astype(np.float64)
    if wide.size == 1:
        return wide.reshape(())
    if shape and wide.size == wide.shape[-1] == shape[-1]:
        return wide.reshape(-1)
    return None


# --- a factor behind a linear operator ----------------------------------------------------------------------------


def _after(edit: Editor, node: onnx_ir.Node, reassociate: bool, outcome: Outcome) -> int:
    """Fold the factor of ``node`` into constants before it; 1 if only rounding forbids that."""
    found = _factor(node)
    if found is None:
        return 0
    value, factor = found
    places = _absorb(value, factor)
    if not places or not all(_representable(*place) for place in places):
        return 0
    if not reassociate and not _keeps_bits(factor.array, value):
        return 1
    edit.rule = _AFTER
    for reader, index, array in places:
        _scale_input(edit, reader, index, array)
    where = module_path(node)
    edit.at(node).replace(node.outputs[0], value)
    edit.sweep([node])
    outcome.count(_AFTER)
    outcome.applied(where, f"{_AFTER}: {len(places)} constants scaled")
    return 0


_Place = tuple[onnx_ir.Node, int, Array]


def _absorb(value: onnx_ir.Value, factor: _Factor) -> list[_Place] | None:
    """Constants (reader, input, by what) that multiplied scale ``value`` by ``factor``; None if none do."""
    node = value.producer()
    if node is None or value.is_graph_output() or len(value.uses()) != 1 or node.domain not in ("", "ai.onnx"):
        return None
    if is_op(node, "Split"):
        return _absorb_part(node, value, factor)
    if len([v for v in node.outputs if v.uses() or v.is_graph_output()]) > 1:
        return None
    if is_op(node, "MatMul", "Gemm", "Conv", "ConvTranspose"):
        return _absorb_product(node, factor)
    if is_op(node, "Add", "Sub"):
        places: list[_Place] = []
        for index, operand in enumerate(node.inputs[:2]):
            found = _absorb_operand(node, index, operand, factor)
            if found is None:
                return None
            places += found
        return places
    if not factor.single:
        return None
    if is_op(node, "Mul", "Div"):
        for index in (1, 0):
            operand = node.inputs[index]
            if _own(operand) and not (is_op(node, "Div") and index == 0):
                return [(node, index, 1.0 / factor.array if is_op(node, "Div") else factor.array)]
        first = node.inputs[0]
        return None if first is None else _absorb(first, factor)
    if is_op(node, *_MOVES, "Neg", "ReduceSum", "ReduceMean") or (
        is_op(node, *_HOMOGENEOUS) and float(factor.array) > 0
    ):
        first = node.inputs[0]
        if first is not None and is_op(node, *_MOVES) and _own(first):
            return [(node, 0, factor.array)]
        return None if first is None else _absorb(first, factor)
    return None


def _representable(node: onnx_ir.Node, index: int, array: Array) -> bool:
    """Whether a small constant, scaled, neither overflows nor vanishes; larger ones are not read to find out."""
    tensor = tensor_of(node.inputs[index])
    if tensor is None or tensor.size > _SMALL:
        return tensor is not None
    old = np.asarray(tensor.numpy()).astype(np.float64)
    with np.errstate(all="ignore"):
        new = (old * np.abs(array).max()).astype(tensor.dtype.numpy())
    wide = new.astype(np.float64)
    return bool(np.array_equal(np.isfinite(old), np.isfinite(wide)) and np.array_equal(old == 0, wide == 0))


def _absorb_part(node: onnx_ir.Node, value: onnx_ir.Value, factor: _Factor) -> list[_Place] | None:
    """One part of a Split along the last axis: a factor for its places, 1 for those of the other parts."""
    whole = node.inputs[0]
    shape = dims(whole)
    if whole is None or not shape or attribute(node, "axis", 0) not in (-1, len(shape) - 1):
        return None
    sizes = [(dims(part) or (None,))[-1] for part in node.outputs]
    if not all(isinstance(size, int) for size in sizes):
        return None
    index = next(i for i, part in enumerate(node.outputs) if part is value)
    parts = [np.ones(size) for size in sizes if isinstance(size, int)]
    parts[index] = parts[index] * factor.array
    return _absorb(whole, _Factor(np.concatenate(parts)))


def _absorb_operand(
    node: onnx_ir.Node, index: int, operand: onnx_ir.Value | None, factor: _Factor
) -> list[_Place] | None:
    if operand is None:
        return None
    if tensor_of(operand) is not None:
        own = dims(operand) or ()
        fits = factor.single or (bool(own) and own[-1] == factor.array.size)
        return [(node, index, factor.array)] if fits and _own(operand) else None
    shape, result = dims(operand), dims(node.outputs[0])
    # What is broadcast along the last axis has no number for each of its places.
    if not factor.single and (not shape or not result or not same(shape[-1], result[-1])):
        return None
    return _absorb(operand, factor)


def _absorb_product(node: onnx_ir.Node, factor: _Factor) -> list[_Place] | None:
    if is_op(node, "Conv", "ConvTranspose") and not factor.single:
        return None
    weight = node.inputs[1]
    if not _own(weight):
        if is_op(node, "MatMul") and factor.single:
            for operand in (0, 1):
                value = node.inputs[operand]
                if value is None:
                    continue
                if _own(value):
                    return [(node, operand, factor.array)]
                found = _absorb(value, factor)
                if found:
                    return found
        return None
    places: list[_Place] = [(node, 1, factor.array)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        if not _own(bias) or (not factor.single and (dims(bias) or (None,))[-1] != factor.array.size):
            return None
        places.append((node, 2, factor.array))
    if not factor.single and (len(dims(weight) or ()) < 2):
        return None
    return places


def _own(value: onnx_ir.Value | None) -> bool:
    """Whether ``value`` is a constant of floats that one node reads, or so small that a copy costs nothing."""
    tensor = tensor_of(value)
    if value is None or tensor is None or tensor.dtype not in FLOATS:
        return False
    return len(value.uses()) == 1 or tensor.size <= _SMALL


def _scale_input(edit: Editor, node: onnx_ir.Node, index: int, scale: Array) -> None:
    """Multiply a constant input, a vector along the last axis of the result: the first of a transposed weight."""
    old = node.inputs[index]
    if scale.ndim == 1 and index == 1 and is_op(node, "Gemm") and attribute(node, "transB", 0):
        scale = scale.reshape(-1, 1)
    _set_constant(edit, node, index, lambda array: array * scale, old)


def _set_constant(
    edit: Editor, node: onnx_ir.Node, index: int, change: Callable[[Array], Array], old: onnx_ir.Value | None
) -> None:
    """Let input ``index`` be a changed copy of a constant, computed in float64 and rounded once."""
    tensor = tensor_of(old)
    assert tensor is not None and old is not None
    dtype = tensor.dtype

    def compute() -> Array:
        return change(tensor.numpy().astype(np.float64)).astype(dtype.numpy())

    small = tensor.size <= _SMALL
    data = onnx_ir.Tensor(compute(), dtype=dtype) if small else lazy(compute, dtype, sizes_of(tensor))
    node.replace_input_with(index, edit.at(node).initializer(data, f"{old.name}.scaled"))
    _forget(edit, old)


def _forget(edit: Editor, value: onnx_ir.Value) -> None:
    maker = value.producer()
    if maker is not None:
        edit.sweep([maker])
    else:
        edit.drop_initializer(value)


# --- a factor or a shift before products --------------------------------------------------------------------------


def _before(edit: Editor, node: onnx_ir.Node, reassociate: bool, outcome: Outcome) -> int:
    """Fold a constant factor or shift of an input into all products that read it; 1 if only rounding forbids that."""
    found = _affine(node)
    if found is None or node.outputs[0].is_graph_output():
        return 0
    value, array, shift = found
    readers = [use.node for use in node.outputs[0].uses()]
    products = [_weight_behind(reader, node.outputs[0]) for reader in readers]
    if not readers or len(set(readers)) != len(readers) or not all(products):
        return 0
    if shift and any(_bias_behind(reader) is None for reader in readers):
        return 0
    if not reassociate and (shift or not _keeps_bits(array, value)):
        return 1
    edit.rule = _SHIFT if shift else _BEFORE
    for reader in readers:
        if shift:
            _shift_product(edit, reader, array)
        else:
            rows = array if array.ndim == 0 else array.reshape(-1, 1)
            if is_op(reader, "Gemm") and attribute(reader, "transB", 0):
                rows = array
            _set_constant(edit, reader, 1, lambda weight, rows=rows: weight * rows, reader.inputs[1])  # type: ignore[misc]
    where = module_path(node)
    edit.at(node).replace(node.outputs[0], value)
    edit.sweep([node])
    outcome.count(edit.rule)
    outcome.applied(where, f"{edit.rule}: {len(readers)} products")
    return 0


def _affine(node: onnx_ir.Node) -> tuple[onnx_ir.Value, Array, bool] | None:
    """The value, the constant, and whether that is added rather than multiplied."""
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None:
        return None
    for value, other in ((a, b),) if is_op(node, "Sub") else ((a, b), (b, a)):
        if tensor_of(value) is not None:
            continue
        array = _vector(other, value, node.outputs[0])
        if array is not None:
            return value, -array if is_op(node, "Sub") else array, not is_op(node, "Mul")
    return None


def _weight_behind(reader: onnx_ir.Node, value: onnx_ir.Value) -> bool:
    """Whether ``reader`` multiplies ``value`` by a constant matrix of its own."""
    if not is_op(reader, "MatMul", "Gemm") or reader.inputs[0] is not value or attribute(reader, "transA", 0):
        return False
    weight = reader.inputs[1]
    return weight is not value and _own(weight) and len(dims(weight) or ()) == 2


def _bias_behind(reader: onnx_ir.Node) -> tuple[onnx_ir.Node, int] | None:
    """Where a product's constant bias stands: an input of the Gemm, or of the Add that alone reads the product."""
    if is_op(reader, "Gemm"):
        unscaled = attribute(reader, "alpha", 1.0) == 1.0 and attribute(reader, "beta", 1.0) == 1.0
        if len(reader.inputs) < 3 or not unscaled or not _is_row(reader.inputs[2], reader.outputs[0]):
            return None
        return reader, 2
    out = reader.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output() or not is_op(uses[0].node, "Add"):
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    return (add, index) if _is_row(add.inputs[index], out) else None


def _is_row(value: onnx_ir.Value | None, out: onnx_ir.Value) -> bool:
    shape, result = dims(value), dims(out)
    return (
        _own(value)
        and bool(shape)
        and bool(result)
        and len(shape or ()) == 1
        and (shape or ())[0] == (result or ())[-1]
    )


def _shift_product(edit: Editor, reader: onnx_ir.Node, shift: Array) -> None:
    """``b + shift·W`` in place of the bias b; W is read when the bias is."""
    place = _bias_behind(reader)
    weight, turned = tensor_of(reader.inputs[1]), bool(attribute(reader, "transB", 0))
    assert place is not None and weight is not None
    node, index = place
    old = node.inputs[index]
    bias = tensor_of(old)
    assert bias is not None and old is not None

    def compute() -> Array:
        matrix = weight.numpy().astype(np.float64)
        matrix = matrix.T if turned else matrix
        row = shift @ matrix if shift.ndim else shift * matrix.sum(axis=0)
        return np.asarray(bias.numpy().astype(np.float64) + row).astype(bias.dtype.numpy())

    data = lazy(compute, bias.dtype, sizes_of(bias))
    node.replace_input_with(index, edit.at(node).initializer(data, f"{old.name}.shifted"))
    _forget(edit, old)
