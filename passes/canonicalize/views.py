"""Reshape, Squeeze, Unsqueeze, Flatten, Expand and Transpose: merged, dropped, or given a constant shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...ir.graph import attribute, constant, producer, tensor_of
from ...ir.symbolic import Dim, known, same, symbols_of
from .work import NodeRule, Work, dims_of, same_dims

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
LAST = int(np.iinfo(np.int64).max)


def _back(work: Work, node: onnx_ir.Node) -> bool:
    """A chain of views that ends in the shape that it had somewhere before: read it there."""
    value = node.inputs[0]
    while value is not None:
        if same_dims(value, node.outputs[0]):
            return work.forward(f"{node.op_type} to a shape it had => x", node, value)
        inner = producer(value, *VIEWS)
        value = inner.inputs[0] if inner is not None else None
    return False


def reshape_target(source: Sequence[Dim] | None, target: Sequence[Dim], *, inputs: frozenset[str]) -> list[int] | None:
    """The constant shape input with which Reshape takes dimensions ``source`` to ``target``; None if there is none.

    A dimension at its old place is 0 (copied), one other may be −1 (computed). A copied dimension of size 0 would
    leave −1 undefined, so beside −1 only dimensions made of ``inputs`` (symbols that the caller's inputs have) are
    copied, not counts that depend on data.
    """
    shape: list[int] = []
    for i, dim in enumerate(target):
        if isinstance(dim, int) and dim != 0:
            shape.append(dim)
        elif source is not None and i < len(source) and known(dim) and same(dim, source[i]):
            shape.append(0)
        else:
            shape.append(-1)
    if shape.count(-1) > 1:
        return None
    if -1 in shape:
        if any(isinstance(dim, int) and dim == 0 for dim in target):
            return None
        copied = [dim for dim, size in zip(target, shape, strict=True) if size == 0]
        if not all(symbols_of(dim) <= inputs for dim in copied):
            return None
    return shape


def _reshape(work: Work, node: onnx_ir.Node) -> bool:
    """``Reshape`` reads the value before the views in front of it, and its shape is constant where provable."""
    if len(node.inputs) < 2:  # before opset 5 the shape was an attribute
        return False
    value, shape = node.inputs[0], node.inputs[1]
    source = value
    while (inner := producer(source, *VIEWS)) is not None and inner.inputs[0] is not None:
        source = inner.inputs[0]
    target = _target(work, node)
    if target is None:
        return False
    symbols = work.input_symbols
    fixed = constant(shape, limit=64)
    new = reshape_target(dims_of(source), target, inputs=symbols)
    if source is not value:
        if new is None or (not all(map(known, target)) and not _determined(target)):
            new, source = reshape_target(dims_of(value), target, inputs=symbols), value
        else:
            node.replace_input_with(0, source)
            _set_shape(work, node, new)
            work.count("Reshape(view(x)) => Reshape(x)", node)
            return True
    if fixed is not None or new is None or not _determined(target):
        return False
    _set_shape(work, node, new)
    work.count("Reshape with a constant shape", node)
    return True


def _determined(target: Sequence[Dim]) -> bool:
    """Whether at most one dimension is unknown: that one is then what the others leave."""
    return sum(not known(dim) for dim in target) <= 1


def _target(work: Work, node: onnx_ir.Node) -> list[Dim] | None:
    """The dimensions that a Reshape makes, as far as they are known."""
    output = dims_of(node.outputs[0])
    if output is not None and attribute(node, "allowzero", 0) and any(dim == 0 for dim in output):
        return None
    found = work.symbolic(node.inputs[1])
    if found is None or len(found.shape) != 1:
        return output
    source = dims_of(node.inputs[0])
    target: list[Dim] = []
    for i, element in enumerate(found.elements):
        if isinstance(element, int) and element == 0 and attribute(node, "allowzero", 0):
            return None
        if isinstance(element, int) and element <= 0:
            if element == 0 and source is not None and i < len(source):
                target.append(source[i])
            else:
                target.append(output[i] if output is not None and i < len(output) else onnx_ir.SymbolicDim(None))
        else:
            target.append(element)
        if not known(target[-1]) and output is not None and i < len(output):
            target[-1] = output[i]
    return target


def _set_shape(work: Work, node: onnx_ir.Node, shape: Sequence[int]) -> None:
    node.attributes.pop("allowzero", None)
    _set_input(work, node, 1, shape, "shape")


def _set_input(work: Work, node: onnx_ir.Node, index: int, numbers: Sequence[int], hint: str) -> None:
    editor = work.edit("", node)
    old = node.inputs[index]
    known_already = constant(old, limit=64)
    if known_already is not None and known_already.tolist() == list(numbers):
        return
    node.replace_input_with(index, editor.ints(list(numbers), hint))
    if old is not None:
        maker = old.producer()
        if maker is not None:
            editor.sweep([maker])
        else:
            editor.drop_initializer(old)


def _unsqueeze(work: Work, node: onnx_ir.Node) -> bool:
    """``Unsqueeze(Unsqueeze(x))`` is one Unsqueeze."""
    inner = producer(node.inputs[0], "Unsqueeze")
    if inner is None or len(node.inputs) < 2 or len(inner.inputs) < 2:
        return False
    outer_axes, inner_axes = constant(node.inputs[1], limit=16), constant(inner.inputs[1], limit=16)
    source = dims_of(inner.inputs[0])
    if outer_axes is None or inner_axes is None or source is None:
        return False
    middle = len(source) + inner_axes.size
    rank = middle + outer_axes.size
    outer = {int(a) % rank for a in outer_axes.reshape(-1)}
    first = {int(a) % middle for a in inner_axes.reshape(-1)}
    places = [axis for axis in range(rank) if axis not in outer]
    axes = sorted(outer | {places[i] for i in first})
    node.replace_input_with(0, inner.inputs[0])
    _set_input(work, node, 1, axes, "axes")
    work.edit("", node).sweep([inner])
    work.count("Unsqueeze(Unsqueeze(x)) => Unsqueeze(x)", node)
    return True


def _transpose(work: Work, node: onnx_ir.Node) -> bool:
    value = node.inputs[0]
    perm = attribute(node, "perm")
    dims = dims_of(value)
    if perm is None:
        if dims is None:
            return False
        perm = list(reversed(range(len(dims))))
    if perm == sorted(perm):
        return work.forward("Transpose by nothing => x", node, value)
    inner = producer(value, "Transpose")
    if inner is None:
        return False
    first = attribute(inner, "perm") or list(reversed(range(len(perm))))
    both = [first[axis] for axis in perm]
    if both == sorted(both):
        return work.forward("Transpose(Transpose(x)) => x", node, inner.inputs[0])
    node.attributes.add(onnx_ir.AttrInt64s("perm", both))
    node.replace_input_with(0, inner.inputs[0])
    work.edit("", node).sweep([inner])
    work.count("Transpose(Transpose(x)) => Transpose(x)", node)
    return True


def _expand(work: Work, node: onnx_ir.Node) -> bool:
    """The shape of an Expand, constant where each dimension is a number or the input's own."""
    shape = node.inputs[1]
    found, dims = work.symbolic(shape), dims_of(node.inputs[0])
    if found is None or dims is None or tensor_of(shape) is not None:
        return False
    offset = len(found.elements) - len(dims)
    numbers = []
    for i, element in enumerate(found.elements):
        if isinstance(element, int):
            numbers.append(element)
        elif known(element) and i >= offset and same(element, dims[i - offset]):
            numbers.append(1)
        else:
            return False
    _set_shape(work, node, numbers)
    work.count("Expand with a constant shape", node)
    return True


def _slice(work: Work, node: onnx_ir.Node) -> bool:
    """Ends of a Slice that are the size of the dimension become "to the end"."""
    if len(node.inputs) < 3 or tensor_of(node.inputs[2]) is not None:
        return False
    found, dims = work.symbolic(node.inputs[2]), dims_of(node.inputs[0])
    axes = constant(node.inputs[3], limit=16) if len(node.inputs) > 3 else None
    steps = constant(node.inputs[4], limit=16) if len(node.inputs) > 4 else None
    if found is None or dims is None or found.dtype != onnx_ir.DataType.INT64:
        return False
    if (axes is None and len(node.inputs) > 3 and node.inputs[3] is not None) or (
        len(node.inputs) > 4 and node.inputs[4] is not None and (steps is None or (steps < 0).any())
    ):
        return False
    ends = []
    for i, element in enumerate(found.elements):
        if isinstance(element, int):
            ends.append(element)
        elif known(element) and same(element, dims[i if axes is None else int(axes[i])]):
            ends.append(LAST)
        else:
            return False
    _set_input(work, node, 2, ends, "ends")
    work.count("Slice to the end", node)
    return True


def _range(work: Work, node: onnx_ir.Node) -> bool:
    """Limits of a Range in one-element vectors become scalars, which is what the specification wants.

    Runtimes take such vectors as long as they do not know the shape, and folding lets them know it.
    """
    vectors = [i for i, value in enumerate(node.inputs) if (dims_of(value) or []) != []]
    if not vectors:
        return False
    editor = work.edit("Range of scalars", node)
    for i in vectors:
        node.replace_input_with(i, editor.op("Reshape", [node.inputs[i], editor.ints([], "scalar")], shape=[]))
    work.count("Range of scalars", node)
    return True


RULES: dict[str, list[NodeRule]] = {
    "Expand": [_expand],
    "Flatten": [_back],
    "Range": [_range],
    "Reshape": [_back, _reshape],
    "Slice": [_slice],
    "Squeeze": [_back],
    "Transpose": [_transpose],
    "Unsqueeze": [_back, _unsqueeze],
}
