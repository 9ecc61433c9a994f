"""A float offset for each group of weights in the place of an integer zero point.

A group is restored as ``s (q - middle) + o``: the range of its codes ends exactly at its least and its largest weight,
zero or not. That is the format of HQQ (Badri and Shaji 2023), whose zero points are floating point, and of llama.cpp's
Q4_1. ONNX Runtime's kernel takes such zero points on the CPU only by restoring the whole matrix for every call; here
the offsets are a thin product of their own, of the sums of the inputs of each group, beside the integer kernel::

    y_n = sum over g of  s_ng (sum over k in g of (q_nk - middle) x_k)  +  o_ng (sum over k in g of x_k)
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import SPARSITY, rank, tensor_of
from ...ir.weights import lazy
from . import tensors
from .methods.rtn import Array, as_float32
from .scheme import Scheme
from .targets import Weight


def obstacle(weight: Weight, scheme: Scheme) -> str | None:
    """Why the groups of a weight can have no offsets, or None."""
    if weight.tables:
        return "an embedding reads the weight, too"
    if any(SPARSITY in node.metadata_props for node in weight.products):
        return "zeros of a pattern would move"
    if weight.channels[1] % scheme.group(weight.channels[1]):
        return f"groups of {scheme.group_size} do not divide its {weight.channels[1]} input channels"
    if any(node.inputs[0] is None or rank(node.inputs[0]) is None for node in weight.products):
        return "the rank of its product's input is not known"
    return None


def find(matrix: Array, scheme: Scheme) -> Array:
    """The offset of each group that lets its least weight have the first code and its largest one the last.

    Args:
        matrix: float32 ``[n, k]``, ``k`` a multiple of the group size.
        scheme: bits and group size.

    Returns:
        float32 ``[n, groups]``.
    """
    n, k = matrix.shape
    parts = matrix.reshape(n, scheme.groups(k), scheme.group(k))
    low, high = parts.min(axis=2), parts.max(axis=2)
    share = np.float32((scheme.levels // 2) / (scheme.levels - 1))
    offsets: Array = low + (high - low) * share
    return offsets


def without(matrix: Array, offsets: Array) -> Array:
    """``matrix`` [n, k] less the offsets [n, groups] of its groups, float32."""
    return (matrix.reshape(*offsets.shape, -1) - offsets[..., None]).reshape(matrix.shape)


def read(factor: onnx_ir.TensorProtocol) -> Array:
    """Offsets [n, groups], float32, out of the factor that :func:`stored` made of them."""
    return as_float32(factor.numpy().T)


def spread(offsets: Array, k: int) -> Array:
    """Offsets [n, groups] of each of ``k`` weights of a channel: [n, k]."""
    spread: Array = np.repeat(offsets, k // offsets.shape[1], axis=1)
    return spread


def stored(offsets: Array, weight: Weight, scheme: Scheme) -> onnx_ir.TensorProtocol:
    """Offsets [n, groups] as the factor ``[groups, n]`` of a product, rounded as scales are."""
    tensor = tensor_of(weight.value)
    assert tensor is not None
    return tensors.stored(_factor(offsets, tensors.precision(weight, scheme)), tensor.dtype)


def deferred(weight: Weight, scheme: Scheme) -> onnx_ir.TensorProtocol:
    """:func:`stored` offsets of a weight as it is now, computed when they are read."""
    tensor, turned = tensor_of(weight.value), weight.layout == "kn"
    assert tensor is not None
    n, k = weight.channels
    shape = (scheme.groups(k), n)
    kind = tensors.precision(weight, scheme)
    return tensors.stored(lazy(lambda: _factor(find(_matrix(tensor, turned), scheme), kind), kind, shape), tensor.dtype)


def left(weight: Weight, offsets: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    """What codes have to stand for: the weight less its :func:`stored` offsets, computed when it is read."""
    tensor, turned = tensor_of(weight.value), weight.layout == "kn"
    assert tensor is not None

    def compute() -> Array:
        rest = without(_matrix(tensor, turned), read(offsets))
        return np.ascontiguousarray(rest.T if turned else rest).astype(tensor.dtype.numpy())

    return lazy(compute, tensor.dtype, tensor.shape.numpy(), weight.value.name)


def _factor(offsets: Array, dtype: onnx_ir.DataType) -> onnx_ir.TensorProtocol:
    return onnx_ir.Tensor(np.ascontiguousarray(offsets.T).astype(dtype.numpy()), dtype=dtype)


def _matrix(tensor: onnx_ir.TensorProtocol, turned: bool) -> Array:
    """A weight as float32 ``[n, k]``."""
    array = tensor.numpy()
    return as_float32(array.T if turned else array)
