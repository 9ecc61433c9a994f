"""Element types: torch's, ONNX's, and how torch promotes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx_ir import DataType
from onnx_ir.tensor_adapters import from_torch_dtype

_FROM_TORCH: dict[torch.dtype, DataType] = {}


def from_torch(dtype: torch.dtype) -> DataType:
    """The ONNX element type of a torch one."""
    found = _FROM_TORCH.get(dtype)
    if found is None:
        found = _FROM_TORCH[dtype] = from_torch_dtype(dtype)
    return found


def numpy_type(dtype: DataType) -> np.dtype[Any]:
    """The NumPy type (``ml_dtypes`` where NumPy has none) of an ONNX element type."""
    return dtype.numpy()


_CATEGORY = {
    DataType.BOOL: 0,
    **dict.fromkeys([DataType.UINT8, DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64], 1),
    **dict.fromkeys([DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT, DataType.DOUBLE], 2),
    **dict.fromkeys([DataType.COMPLEX64, DataType.COMPLEX128], 3),
}


def is_float(dtype: DataType | None) -> bool:
    """Whether an element type is a floating point one."""
    return dtype is not None and _CATEGORY.get(dtype) == 2


def is_integer(dtype: DataType | None) -> bool:
    """Whether an element type is a (not boolean) integer."""
    return dtype is not None and _CATEGORY.get(dtype) == 1


def promote(*operands: Any) -> DataType:
    """The element type in which torch computes on values and Python numbers (``torch.result_type``).

    Dimensioned tensors decide within their category; 0-d tensors and numbers only lift the category.
    """
    levels: list[list[torch.dtype]] = [[], [], []]
    for operand in operands:
        if isinstance(operand, onnx_ir.Value):
            assert operand.dtype is not None and operand.shape is not None
            levels[0 if len(operand.shape) else 1].append(_to_torch(operand.dtype))
        elif isinstance(operand, (bool, torch.SymBool)):
            levels[2].append(torch.bool)
        elif isinstance(operand, (int, torch.SymInt)):
            levels[2].append(torch.int64)
        else:
            levels[2].append(torch.get_default_dtype())
    result: torch.dtype | None = None
    for level in levels:
        if not level:
            continue
        here = level[0]
        for dtype in level[1:]:
            here = torch.promote_types(here, dtype)
        if result is None or _CATEGORY[from_torch(here)] > _CATEGORY[from_torch(result)]:
            result = here
    assert result is not None
    return from_torch(result)


def _to_torch(dtype: DataType) -> torch.dtype:
    return onnx_ir.tensor_adapters.to_torch_dtype(dtype)
