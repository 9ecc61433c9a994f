"""Tensors of PyTorch from NumPy's arrays and back, and what a graph says of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import torch

from ...ir.errors import InputError, UnsupportedError
from ...ir.signature import TensorSpec


def specification(value: onnx_ir.Value) -> TensorSpec:
    """Name, type and shape of an input or output.

    Raises:
        UnsupportedError: it is no tensor.
    """
    if value.dtype is None or (value.type is not None and not isinstance(value.type, onnx_ir.TensorType)):
        raise UnsupportedError(
            f"{value.name!r} is no tensor", where="inputs and outputs of the graph", fix='use backend="onnxruntime"'
        )
    if value.shape is None:
        return TensorSpec(value.name or "", value.dtype.name, None)
    dims = tuple(d if isinstance(d, int) else (d.value or f"{value.name}_{n}") for n, d in enumerate(value.shape))
    return TensorSpec(value.name or "", value.dtype.name, dims)


def from_numpy(value: Any) -> torch.Tensor:
    """An array, or numbers in lists, as a tensor.

    Raises:
        InputError: they are no numbers.
    """
    array = np.ascontiguousarray(value) if np.ndim(value) else np.array(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InputError(f"an array of type {array.dtype} is no tensor", fix="pass numbers") from error


def to_numpy(tensor: torch.Tensor) -> Any:
    """A tensor as an array; bfloat16 as ``ml_dtypes.bfloat16``."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
