"""Operators that return their input: gone, where that holds for every element, shape and sign of zero."""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import attribute, constant, producer, tensor_of
from ...ir.symbolic import same
from .work import NodeRule, Work, dims_of, same_dims, used

SMALL = 4096
"""Constants of more elements are not looked at."""


def _identity(work: Work, node: onnx_ir.Node) -> bool:
    return work.forward("Identity(x) => x", node, node.inputs[0])


def _dropout(work: Work, node: onnx_ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        flag = constant(training, limit=1)
        if flag is None or flag.any():
            return False
    if work.graph.opset_imports.get("", 1) < 7 or any(used(v) for v in node.outputs[1:]):
        return False
    return work.forward("Dropout(x) => x", node, node.inputs[0])


# Casts that keep every value, so that casting back gives the input again.
_LOSSLESS = {
    "BOOL": {"INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "FLOAT16", "FLOAT", "DOUBLE"},
    "UINT8": {"INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "FLOAT16", "FLOAT", "DOUBLE"},
    "INT8": {"INT16", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"},
    "UINT16": {"INT32", "UINT32", "INT64", "UINT64", "FLOAT", "DOUBLE"},
    "INT16": {"INT32", "INT64", "FLOAT", "DOUBLE"},
    "INT32": {"INT64", "DOUBLE"},
    "UINT32": {"INT64", "UINT64", "DOUBLE"},
    "FLOAT16": {"FLOAT", "DOUBLE"},
    "BFLOAT16": {"FLOAT", "DOUBLE"},
    "FLOAT": {"DOUBLE"},
}


def _cast(work: Work, node: onnx_ir.Node) -> bool:
    value = node.inputs[0]
    to = onnx_ir.DataType(attribute(node, "to", 0))
    if value is None or value.dtype is None:
        return False
    if value.dtype == to:
        return work.forward("Cast(x) to its own type => x", node, value)
    inner = producer(value, "Cast")
    if inner is None:
        return False
    source = inner.inputs[0]
    if source is None or source.dtype is None or value.dtype.name not in _LOSSLESS.get(source.dtype.name, ()):
        return False
    if source.dtype == to:
        return work.forward("Cast(Cast(x)) back => x", node, source)
    # Widening first changes nothing: the second cast sees the same number.
    node.replace_input_with(0, source)
    work.edit("", node).sweep([inner])
    work.count("Cast(Cast(x)) => Cast(x)", node)
    return True


def _is_all(value: onnx_ir.Value | None, number: float, *, negative_zero: bool = False) -> bool:
    array = constant(value, limit=SMALL)
    if array is None or array.dtype.kind not in "fiub" or array.size == 0:
        return False
    if not bool(np.all(array == number)):
        return False
    return not negative_zero or array.dtype.kind != "f" or bool(np.all(np.signbit(array)))


def _broadcasts_into(small: onnx_ir.Value | None, value: onnx_ir.Value | None) -> bool:
    """Whether broadcasting ``value`` with the constant ``small`` leaves the shape of ``value`` as it is."""
    shape = dims_of(small)
    if shape is None or value is None or tensor_of(small) is None:
        return False
    if not shape:
        return True
    dims = dims_of(value)
    if dims is None or len(dims) < len(shape):
        return False
    tail = dims[len(dims) - len(shape) :]
    return all(size == 1 or same(size, dim) for size, dim in zip(shape, tail, strict=True))


def _neutral(number: float, rule: str, *, left: bool, negative_zero: bool = False) -> NodeRule:
    """``op(x, number) => x``; with ``left`` also ``op(number, x) => x``.

    A float sum with +0.0 turns −0.0 into +0.0, so only −0.0 is neutral there (``negative_zero``).
    """

    def simplify(work: Work, node: onnx_ir.Node) -> bool:
        a, b = node.inputs[0], node.inputs[1]
        if _is_all(b, number, negative_zero=negative_zero) and _broadcasts_into(b, a):
            return work.forward(rule, node, a)
        if left and _is_all(a, number, negative_zero=negative_zero) and _broadcasts_into(a, b):
            return work.forward(rule, node, b)
        return False

    return simplify


def _subtract(work: Work, node: onnx_ir.Node) -> bool:
    a, b = node.inputs[0], node.inputs[1]
    array = constant(b, limit=SMALL)
    if not _is_all(b, 0) or array is None or (array.dtype.kind == "f" and bool(np.any(np.signbit(array)))):
        return False
    return _broadcasts_into(b, a) and work.forward("x - 0 => x", node, a)


def _divide(work: Work, node: onnx_ir.Node) -> bool:
    a, b = node.inputs[0], node.inputs[1]
    return _is_all(b, 1) and _broadcasts_into(b, a) and work.forward("x / 1 => x", node, a)


def _power(work: Work, node: onnx_ir.Node) -> bool:
    a, b = node.inputs[0], node.inputs[1]
    return _is_all(b, 1) and _broadcasts_into(b, a) and work.forward("x ** 1 => x", node, a)


def _twice(op_type: str) -> NodeRule:
    """``f(f(x)) => x`` for an involution."""

    def simplify(work: Work, node: onnx_ir.Node) -> bool:
        inner = producer(node.inputs[0], op_type)
        return inner is not None and work.forward(f"{op_type}({op_type}(x)) => x", node, inner.inputs[0])

    return simplify


def _idempotent(op_type: str) -> NodeRule:
    def simplify(work: Work, node: onnx_ir.Node) -> bool:
        inner = producer(node.inputs[0], op_type)
        if inner is None:
            return False
        return work.forward(f"{op_type}({op_type}(x)) => {op_type}(x)", node, node.inputs[0])

    return simplify


def _single(work: Work, node: onnx_ir.Node) -> bool:
    if len(node.inputs) != 1:
        return False
    return work.forward(f"{node.op_type} of one => x", node, node.inputs[0])


def _where(work: Work, node: onnx_ir.Node) -> bool:
    condition = constant(node.inputs[0], limit=SMALL)
    if condition is None or condition.size == 0 or (condition.any() and not condition.all()):
        return False
    value = node.inputs[1 if condition.all() else 2]
    if not same_dims(value, node.outputs[0]):
        return False
    return work.forward("Where(constant, a, b) => a or b", node, value)


def _concat(work: Work, node: onnx_ir.Node) -> bool:
    if len(node.inputs) == 1:
        return work.forward("Concat of one => x", node, node.inputs[0])
    axis = attribute(node, "axis", 0)
    empty = [v for v in node.inputs if v is not None and v.shape is not None and _size(v, axis) == 0]
    if not empty or len(empty) == len(node.inputs):
        return False
    kept = [v for v in node.inputs if v not in empty]
    attributes = {"axis": axis}
    if len(kept) == 1:
        return work.forward("Concat with nothing => x", node, kept[0])
    return work.replace("Concat without empty parts", node, lambda edit: edit.op("Concat", kept, attributes))


def _size(value: onnx_ir.Value, axis: int) -> object:
    assert value.shape is not None
    return value.shape[axis] if -len(value.shape) <= axis < len(value.shape) else None


def _slice(work: Work, node: onnx_ir.Node) -> bool:
    value = node.inputs[0]
    dims = dims_of(value)
    if dims is None or len(node.inputs) < 3:
        return False
    starts, ends = constant(node.inputs[1], limit=16), constant(node.inputs[2], limit=16)
    axes, steps = ((constant(node.inputs[i], limit=16) if len(node.inputs) > i else None) for i in (3, 4))
    missing = [len(node.inputs) > i and node.inputs[i] is not None for i in (3, 4)]
    if starts is None or ends is None or (missing[0] and axes is None) or (missing[1] and steps is None):
        return False
    if starts.any() or (steps is not None and (steps != 1).any()):
        return False
    for i, end in enumerate(ends.tolist()):
        dim = dims[i if axes is None else int(axes[i])]
        if end < np.iinfo(np.int32).max and not (isinstance(dim, int) and end >= dim):
            return False
    return work.forward("Slice of all => x", node, value)


def _pad(work: Work, node: onnx_ir.Node) -> bool:
    pads = constant(node.inputs[1], limit=64) if len(node.inputs) > 1 else None
    return pads is not None and not pads.any() and work.forward("Pad by nothing => x", node, node.inputs[0])


def _tile(work: Work, node: onnx_ir.Node) -> bool:
    return _is_all(node.inputs[1], 1) and work.forward("Tile once => x", node, node.inputs[0])


def _split(work: Work, node: onnx_ir.Node) -> bool:
    if len(node.outputs) != 1 or not same_dims(node.inputs[0], node.outputs[0]):
        return False
    return work.forward("Split into one => x", node, node.inputs[0])


def _same_shape(rule: str) -> NodeRule:
    def simplify(work: Work, node: onnx_ir.Node) -> bool:
        return same_dims(node.inputs[0], node.outputs[0]) and work.forward(rule, node, node.inputs[0])

    return simplify


def _clip(work: Work, node: onnx_ir.Node) -> bool:
    if work.graph.opset_imports.get("", 1) < 11 or any(v is not None for v in node.inputs[1:]):
        return False
    return work.forward("Clip without limits => x", node, node.inputs[0])


def _logic(op_type: str, neutral: bool) -> NodeRule:
    return _neutral(float(neutral), f"{op_type} with {neutral} => x", left=True)


RULES: dict[str, list[NodeRule]] = {
    "Add": [_neutral(0, "x + 0 => x", left=True, negative_zero=True)],
    "And": [_logic("And", True)],
    "Cast": [_cast],
    "Clip": [_clip],
    "Concat": [_concat],
    "Div": [_divide],
    "Dropout": [_dropout],
    "Expand": [_same_shape("Expand to the same shape => x")],
    "Identity": [_identity],
    "Max": [_single],
    "Mean": [_single],
    "Min": [_single],
    "Mul": [_neutral(1, "x * 1 => x", left=True)],
    "Neg": [_twice("Neg")],
    "Not": [_twice("Not")],
    "Or": [_logic("Or", False)],
    "Pad": [_pad],
    "Pow": [_power],
    "Relu": [_idempotent("Relu")],
    "Slice": [_slice],
    "Split": [_split],
    "Sub": [_subtract],
    "Sum": [_single],
    "Tile": [_tile],
    "Where": [_where],
}
