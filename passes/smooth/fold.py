"""Folding of scales: producers divided, consumers multiplied, no operator added, nothing read before it is written."""

from __future__ import annotations

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
    old = reader.inputs[index]
    tensor = tensor_of(old)
    assert old is not None and tensor is not None
    if np.all(factors == 1):
        return
    shape = tensor.shape.numpy()
    wide = [1] * len(shape)
    wide[axis] = len(factors)
    column = factors.astype(np.float32).reshape(wide)

    def compute() -> Array:
        array = tensor.numpy()
        product: Array = (array.astype(np.float32) * column).astype(array.dtype)
        return product

    name = (old.name or "weight").partition(SUFFIX)[0] + SUFFIX
    new = edit.initializer(lazy(compute, tensor.dtype, shape, name), name)
    reader.replace_input_with(index, new)
    if old.is_initializer():
        edit.drop_initializer(old)
    elif (constant := old.producer()) is not None:
        edit.sweep([constant])
