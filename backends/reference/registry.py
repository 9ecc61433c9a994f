"""Rules of operators: one function of tensors each, looked up by domain and name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir
import torch

from ...ir.graph import attribute

Tensor: TypeAlias = torch.Tensor
Result: TypeAlias = "Tensor | Sequence[Tensor | None]"

DTYPES: dict[onnx_ir.DataType, torch.dtype] = {
    onnx_ir.DataType.FLOAT: torch.float32,
    onnx_ir.DataType.DOUBLE: torch.float64,
    onnx_ir.DataType.FLOAT16: torch.float16,
    onnx_ir.DataType.BFLOAT16: torch.bfloat16,
    onnx_ir.DataType.INT8: torch.int8,
    onnx_ir.DataType.INT16: torch.int16,
    onnx_ir.DataType.INT32: torch.int32,
    onnx_ir.DataType.INT64: torch.int64,
    onnx_ir.DataType.UINT8: torch.uint8,
    onnx_ir.DataType.BOOL: torch.bool,
    onnx_ir.DataType.UINT16: torch.uint16,
    onnx_ir.DataType.UINT32: torch.uint32,
    onnx_ir.DataType.UINT64: torch.uint64,
    onnx_ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    onnx_ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
}
"""PyTorch's element types; codes of 4 and 2 bits are kept as int8 and uint8."""
_SMALL = {
    onnx_ir.DataType.UINT4: torch.uint8,
    onnx_ir.DataType.INT4: torch.int8,
    onnx_ir.DataType.UINT2: torch.uint8,
    onnx_ir.DataType.INT2: torch.int8,
}


def dtype_of(number: int | onnx_ir.DataType) -> torch.dtype:
    """PyTorch's type for an element type of ONNX."""
    kind = onnx_ir.DataType(number)
    found = DTYPES.get(kind) or _SMALL.get(kind)
    if found is None:
        raise TypeError(f"PyTorch has no element type {kind.name}")
    return found


def tensor_from(tensor: onnx_ir.TensorProtocol, device: torch.device) -> Tensor:
    """A constant of a graph as a tensor of its own."""
    kind = dtype_of(tensor.dtype)
    array = tensor.numpy()
    if kind in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        raw = np.ascontiguousarray(array).view(np.int16 if kind is torch.bfloat16 else np.int8)
        return torch.from_numpy(raw.copy()).view(kind).to(device)
    if tensor.dtype in _SMALL:
        array = array.astype(np.int8 if kind is torch.int8 else np.uint8)
    return torch.from_numpy(np.array(array, order="C")).to(device)


@dataclass(frozen=True)
class Call:
    """A node about to be computed.

    Attributes:
        node: it.
        x: its inputs; None for those left out.
        opset: of its domain.
        device: where results are made.
        run: computes a subgraph of the node: (graph, its inputs) to its outputs.
    """

    node: onnx_ir.Node
    x: Sequence[Tensor | None]
    opset: int
    device: torch.device
    run: Callable[[onnx_ir.Graph, Sequence[Tensor]], list[Tensor]]

    def __getitem__(self, index: int) -> Tensor:
        """An input that must be there."""
        value = self.x[index]
        assert value is not None
        return value

    def get(self, index: int) -> Tensor | None:
        """An optional input."""
        return self.x[index] if index < len(self.x) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return attribute(self.node, name, default)

    def ints(self, name: str, index: int) -> list[int] | None:
        """Numbers that are an attribute in old opsets and an input in new ones."""
        given = self.get(index)
        if given is not None:
            return [int(n) for n in given.reshape(-1).tolist()]
        found = self.attr(name)
        return None if found is None else [int(n) for n in (found if isinstance(found, list) else [found])]


Rule = Callable[[Call], Result]
RULES: dict[tuple[str, str], Rule] = {}


def rule(*names: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for some operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[domain, name] = function
        return function

    return register
