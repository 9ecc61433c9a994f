"""Weights in number formats that are no integers with a zero point: NF4 and FP8.

They keep size and accuracy where a backend has kernels for them; ONNX Runtime on a CPU has a slow one for NF4 and none
for FP8, and the report says so.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir

from ...ir.graph import tensor_of
from ...ir.noise import WEIGHT_NOISE, decibels
from ...ir.rewrite import Editor
from .methods.rtn import Array, as_float32, pack
from .scheme import Scheme
from .targets import Weight
from .tensors import described

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""Quantiles of a normal distribution, scaled to [-1, 1], zero among them (Dettmers et al. 2023, appendix E)."""
_ZERO = 7
_LARGEST_FP8 = 448.0
"""Largest number of float8_e4m3fn (Micikevicius et al. 2022)."""


def obstacle(weight: Weight) -> str | None:
    """Why a weight cannot be stored in such a format, or None."""
    if weight.tables:
        return "an embedding reads the weight, too: its rows would be decoded all at once"
    tensor = tensor_of(weight.value)
    if tensor is not None and tensor.dtype != onnx_ir.DataType.FLOAT:
        return f"the format is for float32 products, not {tensor.dtype.name}"
    return None


def nf4(weights: Array, group: int) -> tuple[Array, Array]:
    """Codes of the nearest of 16 levels, by groups with their largest magnitude as scale.

    Args:
        weights: float32 ``[n, k]``.
        group: weights that share a scale; the last group of a channel may be shorter.

    Returns:
        Codes uint8 ``[n, groups, group]``, filled up with the code of zero, and scales float32 ``[n, groups, 1]``.
    """
    n, k = weights.shape
    groups = -(-k // group)
    parts = np.pad(weights, ((0, 0), (0, groups * group - k))).reshape(n, groups, group)
    scales = np.abs(parts).max(axis=2, keepdims=True)
    scales[scales == 0] = 1
    borders = (NF4[1:] + NF4[:-1]) / 2
    return np.searchsorted(borders, parts / scales).astype(np.uint8), scales


def fp8(weights: Array) -> tuple[Array, Array]:
    """Nearest float8_e4m3fn numbers, channel by channel.

    Args:
        weights: float32 ``[n, k]``.

    Returns:
        Codes float8_e4m3fn ``[n, k]`` and scales float32 ``[n]``.
    """
    largest = np.abs(weights).max(axis=1)
    scales = np.where(largest > 0, largest / _LARGEST_FP8, 1).astype(np.float32)
    codes = np.clip(weights / scales[:, None], -_LARGEST_FP8, _LARGEST_FP8).astype(ml_dtypes.float8_e4m3fn)
    return codes, scales


def write(edit: Editor, weight: Weight, scheme: Scheme) -> tuple[onnx_ir.Value, dict[str, Any]]:
    """Insert codes and what restores the weight from them, where the editor stands.

    Returns:
        The restored weight, laid out as the one it replaces, and figures for the report.

    Raises:
        FloatingPointError: a weight is infinite or not a number.
    """
    tensor = tensor_of(weight.value)
    assert tensor is not None
    array = tensor.numpy()
    matrix = as_float32(array.T if weight.layout == "kn" else array)
    if not np.isfinite(matrix).all():
        raise FloatingPointError("a weight is infinite or not a number")
    name = weight.value.name or "weight"
    if scheme.format == "nf4":
        restored, back, size = _codebook(edit, matrix, scheme, name)
    else:
        restored, back, size = _float8(edit, matrix, name)
    if weight.layout == "kn":
        restored = edit.op("Transpose", [restored], {"perm": [1, 0]}, hint=f"{name}.turned")
    n, k = matrix.shape
    lost = float(((back - matrix).astype(np.float64) ** 2).sum())
    noise = decibels(float((matrix.astype(np.float64) ** 2).sum()), lost)
    return restored, described(name, n, k, scheme, size) | {WEIGHT_NOISE: noise}


def _codebook(edit: Editor, matrix: Array, scheme: Scheme, name: str) -> tuple[onnx_ir.Value, Array, int]:
    n, k = matrix.shape
    codes, scales = nf4(matrix, scheme.group(k))
    packed = pack(codes.reshape(1, -1)).reshape(-1)
    stored = onnx_ir.PackedTensor(packed, onnx_ir.DataType.UINT4, shape=codes.shape)
    places = edit.op("Cast", [edit.initializer(stored, f"{name}.codes")], {"to": int(onnx_ir.DataType.INT32)})
    levels = edit.op("Gather", [edit.initializer(NF4, f"{name}.levels"), places], {"axis": 0})
    whole = edit.op("Mul", [levels, edit.initializer(scales, f"{name}.scales")])
    restored = edit.op("Reshape", [whole, edit.ints([n, -1])], dtype=onnx_ir.DataType.FLOAT)
    if codes.shape[1] * codes.shape[2] != k:
        restored = edit.op("Slice", [restored, edit.ints([0]), edit.ints([k]), edit.ints([1])])
    restored.shape = onnx_ir.Shape([n, k])
    back = (NF4[codes] * scales).reshape(n, -1)[:, :k]
    return restored, back, packed.nbytes + scales.nbytes


def _float8(edit: Editor, matrix: Array, name: str) -> tuple[onnx_ir.Value, Array, int]:
    codes, scales = fp8(matrix)
    stored = onnx_ir.Tensor(codes, dtype=onnx_ir.DataType.FLOAT8E4M3FN)
    inputs = [edit.initializer(stored, f"{name}.codes"), edit.initializer(scales, f"{name}.scales")]
    restored = edit.op("DequantizeLinear", inputs, {"axis": 0}, dtype=onnx_ir.DataType.FLOAT, shape=matrix.shape)
    return restored, codes.astype(np.float32) * scales[:, None], codes.nbytes + scales.nbytes
