"""Folding of scales: producers divided, consumers multiplied, no operator added, nothing read before it is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir

from ...ir.graph import tensor_of
from ...ir.rewrite import Editor
from ...ir.weights import lazy
from .flow import spread
from .groups import Group
from .products import Array, Matrix

SUFFIX = ".scaled"


def fold(edit: Editor, group: Group, scales: Array) -> None:
    """Divide the producer's output by ``scales`` and multiply the consumers' input channels by them.

    The outputs of the model stay what they are. A bias or weight of a normalization that others read, too, is copied
    for this one.

    Args:
        edit: edits the graph of the group.
        group: where.
        scales: positive, float32 [group.size]; 1 where the channel is not free.
    """
    assert scales.shape == (group.size,) and np.all(scales[~group.free] == 1)
    for vector in group.vectors:
        _replace(edit, vector.node, vector.index, 1 / spread(scales, vector.labels), axis=-1)
    if group.matrix is not None:
        axis = 0 if group.matrix.layout == "nk" else 1
        _replace_matrix(edit, group.matrix, 1 / scales, axis)
    for consumer in group.consumers:
        axis = 1 if consumer.matrix.layout == "nk" else 0
        _replace_matrix(edit, consumer.matrix, spread(scales, consumer.labels), axis)


def _replace_matrix(edit: Editor, matrix: Matrix, factors: Array, axis: int) -> None:
    _replace(edit, matrix.reader, matrix.index, factors, axis)


def _replace(edit: Editor, reader: onnx_ir.Node, index: int, factors: Array, axis: int) -> None:
    """Let ``reader`` read its constant input times ``factors`` along ``axis``."""
    tensor = tensor_of(reader.inputs[index])
    assert tensor is not None
    if np.all(factors == 1):
        return
    wide = [1] * len(tensor.shape)
    wide[axis] = len(factors)
    column = factors.astype(np.float32).reshape(wide)
    replace_constant(edit, reader, index, lambda array: array * column)


def replace_constant(edit: Editor, reader: onnx_ir.Node, index: int, change: Callable[[Array], Array]) -> None:
    """Let ``reader`` read its constant input changed, computed in float32 when it is read.

    Args:
        edit: edits the graph of ``reader``.
        reader: whose input is constant.
        index: which input.
        change: from the float32 array to one of the same shape.
    """
    old = reader.inputs[index]
    tensor = tensor_of(old)
    assert old is not None and tensor is not None

    def compute() -> Array:
        array = tensor.numpy()
        return np.asarray(change(array.astype(np.float32)).astype(array.dtype))

    name = (old.name or "weight").partition(SUFFIX)[0] + SUFFIX
    new = edit.initializer(lazy(compute, tensor.dtype, tensor.shape.numpy(), name), name)
    reader.replace_input_with(index, new)
    if old.is_initializer():
        edit.drop_initializer(old)
    elif (constant := old.producer()) is not None:
        edit.sweep([constant])
