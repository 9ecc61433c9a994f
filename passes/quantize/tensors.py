"""Quantized weights as tensors of the graph: codes, scales and zero points in the layout of the weight they replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import tensor_of
from ...ir.weights import Shared, Widened, lazy
from .methods.rtn import Array, Codes, pack
from .scheme import PER_CHANNEL, Scheme
from .targets import Weight

Tensors = tuple[onnx_ir.TensorProtocol, onnx_ir.TensorProtocol, onnx_ir.TensorProtocol]
"""Codes, scales and zero points."""


def stored_bytes(n: int, k: int, scheme: Scheme, scale_bytes: int = 4) -> int:
    """Bytes of ``n`` channels of ``k`` weights: codes padded to whole groups, scales, offsets, packed zero points."""
    groups = scheme.groups(k)
    padded = k if scheme.group_size == PER_CHANNEL else groups * scheme.group_size
    # Zero points are left out where they are what the kernel takes without any.
    implied = scheme.symmetric and scheme.bits == scheme.stored_bits
    zeros = 0 if implied else -(-groups * scheme.stored_bits // 8)
    numbers = 2 * groups if scheme.offsets else groups
    return n * (-(-padded * scheme.stored_bits // 8) + numbers * (2 if scheme.half_scales else scale_bytes) + zeros)


def described(name: str, n: int, k: int, scheme: Scheme, size: int) -> dict[str, Any]:
    """Figures of a stored weight of ``n`` channels of ``k`` weights in ``size`` bytes, for the report."""
    return {
        "weight": name,
        "channels": n,
        "weights": n * k,
        "bits": scheme.bits,
        "group_size": scheme.group(k),
        "bytes": size,
        "bits_per_weight": round(size * 8 / (n * k), 4),
    }


def precision(weight: Weight, scheme: Scheme) -> onnx_ir.DataType:
    """The type that scales and offsets of a weight are rounded to."""
    tensor = tensor_of(weight.value)
    assert tensor is not None
    half = scheme.half_scales and tensor.dtype == onnx_ir.DataType.FLOAT
    return onnx_ir.DataType.FLOAT16 if half else tensor.dtype


def stored(numbers: onnx_ir.TensorProtocol, dtype: onnx_ir.DataType) -> onnx_ir.TensorProtocol:
    """Scales or offsets in their own precision, as a tensor of the type that the graph multiplies by."""
    return numbers if numbers.dtype == dtype else Widened(numbers)


def packs(weight: Weight, scheme: Scheme) -> bool:
    """Whether the codes of a weight are packed row by row: a row of an odd number of codes would end in mid-byte."""
    return scheme.stored_bits == 4 and weight.layout == "nk" and weight.channels[1] % 2 == 0


def deferred(compute: Callable[[], Codes], weight: Weight, scheme: Scheme) -> Tensors:
    """Lazy tensors, computed together when the first is read; ``compute`` packs as :func:`packs` says."""
    shared = Shared(compute, readers=2 if scheme.symmetric else 3)
    place = _Place(weight, scheme)
    zeros = (
        _middle(place.small, place.scale_shape, scheme.levels // 2)
        if scheme.symmetric
        else lazy(lambda: place.zero_points(shared.get()), place.small, place.scale_shape)
    )
    return (
        lazy(lambda: place.codes(shared.get()), place.small, place.shape),
        stored(lazy(lambda: place.scales(shared.get()), place.precision, place.scale_shape), place.dtype),
        zeros,
    )


def ready(codes: Codes, weight: Weight, scheme: Scheme) -> Tensors:
    """Tensors of codes that are there; packed already where :func:`packs` says so."""
    place = _Place(weight, scheme)
    zeros = (
        _middle(place.small, place.scale_shape, scheme.levels // 2) if scheme.symmetric else place.zero_points(codes)
    )
    return place.codes(codes), stored(place.scales(codes), place.dtype), zeros


class _Place:
    """Types and shapes of the tensors of one weight."""

    def __init__(self, weight: Weight, scheme: Scheme) -> None:
        tensor = tensor_of(weight.value)
        assert tensor is not None
        n, k = weight.channels
        self.dtype, self.precision = tensor.dtype, precision(weight, scheme)
        self.small = onnx_ir.DataType.UINT4 if scheme.stored_bits == 4 else onnx_ir.DataType.UINT8
        self.shape = tuple(int(d) for d in tensor.shape.numpy())
        self._turned = weight.layout == "kn"
        self._packed = packs(weight, scheme)
        self._name = weight.value.name
        if scheme.group_size == PER_CHANNEL:
            self.scale_shape: tuple[int, ...] = (n,)
        else:
            groups = scheme.groups(k)
            self.scale_shape = (groups, n) if self._turned else (n, groups)

    def _arranged(self, array: Array, to: tuple[int, ...]) -> Array:
        return np.ascontiguousarray(array.T if self._turned else array).reshape(to)

    def codes(self, codes: Codes) -> onnx_ir.TensorProtocol:
        if self._packed:
            return onnx_ir.PackedTensor(codes.codes.reshape(-1), self.small, shape=self.shape, name=self._name)
        return small(self._arranged(codes.codes, self.shape), self.small)

    def scales(self, codes: Codes) -> onnx_ir.TensorProtocol:
        array = self._arranged(codes.scales, self.scale_shape)
        return onnx_ir.Tensor(array.astype(self.precision.numpy()), dtype=self.precision)

    def zero_points(self, codes: Codes) -> onnx_ir.TensorProtocol:
        assert codes.zero_points is not None
        return small(self._arranged(codes.zero_points, self.scale_shape), self.small)


def small(array: Array, dtype: onnx_ir.DataType) -> onnx_ir.TensorProtocol:
    """Codes or zero points as a tensor of 8 bits each, or of 4, two a byte."""
    if dtype == onnx_ir.DataType.UINT8:
        return onnx_ir.Tensor(array, dtype=dtype)
    packed = pack(array.reshape(1, -1))
    return onnx_ir.PackedTensor(packed.reshape(-1), dtype, shape=array.shape)


def _middle(dtype: onnx_ir.DataType, shape: tuple[int, ...], middle: int) -> onnx_ir.TensorProtocol:
    """Zero points that are all the middle code, without memory of their own."""
    count = int(np.prod(shape))
    if dtype == onnx_ir.DataType.UINT8:
        return onnx_ir.Tensor(np.broadcast_to(np.uint8(middle), shape), dtype=dtype)
    return onnx_ir.PackedTensor(np.broadcast_to(np.uint8(middle * 0x11), (-(-count // 2),)), dtype, shape=shape)
