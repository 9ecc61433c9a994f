"""Lazy weights: tensors that are read or computed when someone asks, so that no model has to fit in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import onnx_ir

T = TypeVar("T")
Array = np.ndarray[Any, Any]


def lazy(
    compute: Callable[[], Array | onnx_ir.TensorProtocol],
    dtype: onnx_ir.DataType,
    shape: Sequence[int],
    name: str | None = None,
) -> onnx_ir.LazyTensor:
    """A tensor of known ``dtype`` and ``shape`` whose data ``compute()`` returns each time it is read.

    Nothing is kept between two reads: who writes a model reads each weight once.
    """

    def evaluate() -> onnx_ir.TensorProtocol:
        data = compute()
        tensor = onnx_ir.Tensor(data, dtype=dtype) if isinstance(data, np.ndarray) else data
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"lazy tensor {name!r} computed shape {tuple(tensor.shape)}, declared {tuple(shape)}")
        return tensor

    return onnx_ir.LazyTensor(evaluate, dtype, onnx_ir.Shape(shape), cache=False, name=name)


def transposed(tensor: onnx_ir.TensorProtocol, perm: Sequence[int]) -> onnx_ir.LazyTensor:
    """``tensor`` with its axes permuted, read when needed."""
    sizes = tensor.shape.numpy()
    shape = [sizes[axis] for axis in perm]
    return lazy(lambda: np.ascontiguousarray(tensor.numpy().transpose(perm)), tensor.dtype, shape, tensor.name)


class Widened(onnx_ir.LazyTensor):
    """Float32 numbers that are all float16 ones: who can widen them when a model is loaded may store these.

    Attributes:
        base: the numbers in float16.
    """

    def __init__(self, base: onnx_ir.TensorProtocol, name: str | None = None) -> None:
        self.base = base
        super().__init__(self._widen, onnx_ir.DataType.FLOAT, onnx_ir.Shape(base.shape.numpy()), cache=False, name=name)

    def _widen(self) -> onnx_ir.TensorProtocol:
        return onnx_ir.Tensor(self.base.numpy().astype(np.float32))


def rearranged(
    tensors: Sequence[onnx_ir.TensorProtocol], function: Callable[[Sequence[Array]], Array], shape: Sequence[int]
) -> onnx_ir.LazyTensor:
    """What ``function`` makes of the arrays of some tensors of one type by moving numbers, computed when it is read."""
    halves = [tensor.base for tensor in tensors if isinstance(tensor, Widened)]
    if len(halves) == len(tensors):
        return Widened(lazy(lambda: function([half.numpy() for half in halves]), halves[0].dtype, shape))
    return lazy(lambda: function([tensor.numpy() for tensor in tensors]), tensors[0].dtype, shape)


class View(onnx_ir.LazyTensor):
    """The bytes of ``base`` under another element type and shape: who writes both writes them once.

    Attributes:
        base: the tensor that owns the bytes; not a view itself.
    """

    def __init__(
        self,
        base: onnx_ir.TensorProtocol,
        dtype: onnx_ir.DataType,
        shape: Sequence[int],
        name: str | None = None,
    ) -> None:
        self.base: onnx_ir.TensorProtocol = base.base if isinstance(base, View) else base
        super().__init__(self._evaluate_view, dtype, onnx_ir.Shape(shape), cache=False, name=name)
        if self.nbytes != base.nbytes:
            raise ValueError(f"a view of {self.nbytes} bytes on a tensor of {base.nbytes}")

    def _evaluate_view(self) -> onnx_ir.TensorProtocol:
        raw = np.frombuffer(self.base.tobytes(), np.uint8)
        if self.dtype.bitwidth < 8:
            return onnx_ir.PackedTensor(raw, self.dtype, shape=self.shape)
        return onnx_ir.Tensor(raw.view(self.dtype.numpy()).reshape(self.shape.numpy()), dtype=self.dtype)


class Shared(Generic[T]):
    """One computation behind several lazy tensors (codes, scales and zero points of one weight).

    Keeps the last result until ``readers`` reads were made of it, so that writing the tensors one after the other
    computes once and holds one weight at a time.
    """

    def __init__(self, compute: Callable[[], T], readers: int) -> None:
        self._compute, self._readers, self._left = compute, readers, 0
        self._result: T | None = None
        self._lock = threading.Lock()

    def get(self) -> T:
        """The result, computed on the first read of each round."""
        with self._lock:
            if self._left == 0 or self._result is None:
                self._result, self._left = self._compute(), self._readers
            result = self._result
            self._left -= 1
            if self._left == 0:
                self._result = None
            return result
