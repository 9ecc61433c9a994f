"""Folding of rotations into constants: computed when they are read, so that nothing is held in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import tensor_of
from ...ir.rewrite import Editor
from ...ir.weights import lazy
from ..smooth.products import Matrix

Array = np.ndarray[Any, Any]
SUFFIX = ".rotated"
_ROWS = 4096


def right(weights: Array, q: Array) -> Array:
    """``weights @ q`` in float32, a few thousand rows at a time."""
    result = np.empty((len(weights), q.shape[1]), np.float32)
    for start in range(0, len(weights), _ROWS):
        rows = slice(start, start + _ROWS)
        np.matmul(np.asarray(weights[rows], np.float32), q, out=result[rows])
    return result


def inputs(edit: Editor, matrix: Matrix, gain: Array | None, q: Array) -> None:
    """Rotate the input channels of a product: ``W`` [n, k] becomes ``W diag(gain) q``."""
    whole = np.asarray(q if gain is None else gain[:, None] * q, np.float32)
    if matrix.layout == "nk":
        replace(edit, matrix.reader, matrix.index, lambda w: right(w, whole))
    else:
        turned = np.ascontiguousarray(whole.T)
        replace(edit, matrix.reader, matrix.index, lambda w: turned @ np.asarray(w, np.float32))


def outputs(edit: Editor, matrix: Matrix, q: Array) -> None:
    """Rotate the output channels of a product: ``W`` [n, k] becomes ``qᵀ W``."""
    whole = np.asarray(q, np.float32)
    if matrix.layout == "kn":
        replace(edit, matrix.reader, matrix.index, lambda w: right(w, whole))
    else:
        turned = np.ascontiguousarray(whole.T)
        replace(edit, matrix.reader, matrix.index, lambda w: turned @ np.asarray(w, np.float32))


def vector(edit: Editor, reader: onnx_ir.Node, index: int, q: Array) -> None:
    """Rotate a constant of one number a channel."""
    replace(edit, reader, index, lambda v: (v.astype(np.float64).reshape(-1) @ q).reshape(v.shape))


def replace(edit: Editor, reader: onnx_ir.Node, index: int, change: Callable[[Array], Array]) -> onnx_ir.Value:
    """Let ``reader`` read its constant input changed; others that read it go on reading it as it is."""
    old = reader.inputs[index]
    tensor = tensor_of(old)
    assert old is not None and tensor is not None
    new = changed(edit, old, change)
    reader.replace_input_with(index, new)
    drop(edit, old)
    return new


def changed(edit: Editor, old: onnx_ir.Value, change: Callable[[Array], Array]) -> onnx_ir.Value:
    """A new constant of the same type and shape."""
    tensor = tensor_of(old)
    assert tensor is not None

    def compute() -> Array:
        array = tensor.numpy()
        return np.ascontiguousarray(change(array)).astype(array.dtype)

    name = (old.name or "weight").partition(SUFFIX)[0] + SUFFIX
    return edit.initializer(lazy(compute, tensor.dtype, tensor.shape.numpy(), name), name)


def drop(edit: Editor, old: onnx_ir.Value) -> None:
    """Forget a constant that nobody reads any more."""
    if old.is_initializer():
        edit.drop_initializer(old)
    elif (maker := old.producer()) is not None:
        edit.sweep([maker])
