"""Products by constant matrices: where the matrix is, how it lies, and who else reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir

from ...ir.graph import attribute, is_op, module_path, tensor_of

Array = np.ndarray[Any, Any]

FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Matrix:
    """The constant matrix of a product.

    Attributes:
        value: the initializer (or ``Constant`` output).
        layout: ``nk`` if each row is one output channel, ``kn`` if each column is.
        reader: the one node that reads it: the product, or a ``Transpose`` before it.
        index: which of the reader's inputs it is.
        shared: who reads it too, or None.
    """

    value: onnx_ir.Value
    layout: Literal["nk", "kn"]
    reader: onnx_ir.Node
    index: int
    shared: str | None

    @property
    def tensor(self) -> onnx_ir.TensorProtocol:
        """The weights, unread."""
        tensor = tensor_of(self.value)
        assert tensor is not None
        return tensor

    @property
    def channels(self) -> tuple[int, int]:
        """Output and input channels: (N, K)."""
        a, b = (int(d) for d in self.tensor.shape.numpy())
        return (b, a) if self.layout == "kn" else (a, b)

    def read(self) -> Array:
        """The weights as float32 [N, K]."""
        array = self.tensor.numpy()
        return np.ascontiguousarray(array.T if self.layout == "kn" else array, np.float32)


def matrix(node: onnx_ir.Node) -> Matrix | None:
    """The matrix that ``node`` multiplies its first input by; None if it is no such product."""
    if not is_op(node, "MatMul", "Gemm") or attribute(node, "transA", 0):
        return None
    value, reader, index = node.inputs[1], node, 1
    turned = is_op(node, "Gemm") and bool(attribute(node, "transB", 0))
    shared = None
    while value is not None:
        others = [use.node for use in value.uses() if use.node is not reader]
        if others:
            shared = module_path(others[0])
        elif len(value.uses()) > 1 or value.is_graph_output():
            shared = "an output of the model" if value.is_graph_output() else module_path(reader)
        maker = value.producer()
        if maker is None or not is_op(maker, "Transpose") or attribute(maker, "perm", [1, 0]) != [1, 0]:
            break
        value, reader, index = maker.inputs[0], maker, 0
        turned = not turned
    tensor = tensor_of(value)
    if value is None or tensor is None or tensor.dtype not in FLOATS or len(tensor.shape) != 2:
        return None
    return Matrix(value, "nk" if turned else "kn", reader, index, shared)
