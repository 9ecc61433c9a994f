"""Constants behind the second operand of a product, and the layout that its template wants them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from ....ir.errors import ModelError
from ....ir.graph import SPARSITY, attribute, is_op, tensor_of

if TYPE_CHECKING:
    import torch

Outer = Mapping[onnx_ir.Value, onnx_ir.Value]
"""What the inputs of a function are where it is called."""

FOUR = (onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4)
EIGHT = (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8)
FLOAT8 = onnx_ir.DataType.FLOAT8E4M3FN
_SIGNED = (onnx_ir.DataType.INT4, onnx_ir.DataType.INT8)


@dataclass(frozen=True)
class Quantized:
    """Constant weights in codes.

    Attributes:
        codes, scales, zeros: the constants; zero points may be None.
        block: columns that share a scale; None where a channel has one.
        turned: whether the codes are [N, K].
    """

    codes: onnx_ir.TensorProtocol
    scales: onnx_ir.TensorProtocol
    zeros: onnx_ir.TensorProtocol | None
    block: int | None
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = (int(n) for n in self.codes.shape)  # type: ignore[arg-type]
        return (rows, columns) if self.turned else (columns, rows)

    @property
    def middle(self) -> int:
        """The code, counted from the least, that stands for zero where there are no zero points."""
        if self.codes.dtype not in _SIGNED:
            return 0
        return 8 if self.codes.dtype in FOUR else 128

    def symmetric(self) -> bool:
        """Whether all zero points are in the middle of the codes."""
        half = 8 if self.codes.dtype in FOUR else 128
        if self.zeros is None:
            return self.middle == half or self.codes.dtype == FLOAT8
        shift = self.middle  # zero points are counted as the codes are
        return bool((np.asarray(self.zeros.numpy()).astype(np.int32) + shift == half).all())


def behind(value: onnx_ir.Value | None, turned: bool, outer: Outer) -> tuple[onnx_ir.Node | None, bool]:
    """What makes a weight, through a transpose, and whether it is [N, K] there; ``turned`` says so of the operand."""
    maker = None if value is None else outer.get(value, value).producer()
    if is_op(maker, "Transpose"):
        assert maker is not None
        if attribute(maker, "perm") != [1, 0]:
            return None, turned
        value, turned = maker.inputs[0], not turned
        maker = None if value is None else outer.get(value, value).producer()
    return maker, turned


def is_turned(node: onnx_ir.Node) -> bool:
    """Whether the second operand of a product is [N, K] as it comes in."""
    return is_op(node, "Gemm") and bool(attribute(node, "transB", 0))


def quantized(node: onnx_ir.Node, outer: Outer) -> Quantized | None:
    """The codes behind the second operand of a product, through a transpose."""
    maker, turned = behind(node.inputs[1], is_turned(node), outer)
    if not is_op(maker, "DequantizeLinear"):
        return None
    assert maker is not None
    tensors = [None if v is None else tensor_of(outer.get(v, v)) for v in maker.inputs]
    codes, scales = tensors[0], tensors[1]
    zeros = tensors[2] if len(tensors) > 2 else None
    if (
        codes is None
        or scales is None
        or len(codes.shape) != 2
        or (len(maker.inputs) > 2 and maker.inputs[2] is not None and zeros is None)
    ):
        return None
    axis = attribute(maker, "axis", 1) % 2
    block = attribute(maker, "block_size", 0)
    along = 1 if turned else 0
    if block and axis != along:
        return None
    if not block and (axis == along or len(scales.shape) != 1):
        return None
    found = Quantized(codes, scales, zeros, block or None, turned)
    return Quantized(codes, scales, zeros, None, turned) if block == found.shape[1] else found


def pattern24(node: onnx_ir.Node) -> bool:
    """Whether the weights of a product were pruned to the pattern 2:4."""
    return node.metadata_props.get(SPARSITY, "").split(" ")[0] == "2:4"


def pack(function: str, node: onnx_ir.Node, outer: Outer, device: torch.device) -> Any:
    """The weights of a product in the layout of its template.

    Raises:
        ModelError: they do not fit it.
    """
    from ...reference.registry import tensor_from
    from ..codes import Codes8, Rows8, pack4
    from ..pattern24 import pack24, pack24_codes

    found = quantized(node, outer)
    if found is None:
        return pack24(_dense(node, outer, device))
    import torch

    n = found.shape[0]

    def laid(tensor: torch.Tensor) -> torch.Tensor:
        """Scales or zero points as [N, groups]."""
        if tensor.numel() == n:
            return tensor.reshape(n, 1)
        return tensor.contiguous() if found.turned else tensor.T.contiguous()

    codes, scales = tensor_from(found.codes, device), laid(tensor_from(found.scales, device))
    codes = codes if found.turned else codes.T
    zeros = None if found.zeros is None or found.symmetric() else laid(tensor_from(found.zeros, device))
    if found.codes.dtype == FLOAT8:
        if function == "w8a8":
            return Rows8(codes.contiguous(), scales.reshape(n), None)
        return Codes8(codes.contiguous().view(torch.uint8), scales, None, "float")
    places = (codes.to(torch.int16) + found.middle).to(torch.uint8).contiguous()
    if function == "w8a8":
        signed = (places.to(torch.int16) - 128).to(torch.int8)
        return Rows8(signed, scales.reshape(n), signed.sum(1, dtype=torch.int32))
    if zeros is not None:
        zeros = (zeros.to(torch.int16) + found.middle).to(torch.uint8).contiguous()
    elif not found.symmetric():
        zeros = torch.zeros(scales.shape, dtype=torch.uint8, device=device)
    if function == "sparse24":
        assert found.block is not None
        return pack24_codes(places, scales, found.block)
    if found.codes.dtype in FOUR:
        assert found.block is not None
        return pack4(places, scales, found.block, zeros)
    return Codes8(places, scales, found.block, "integer", zeros)


def _dense(node: onnx_ir.Node, outer: Outer, device: torch.device) -> torch.Tensor:
    """Constant weights as [N, K]."""
    from ...reference.registry import tensor_from

    tensor, turned = constant(node, outer)
    if tensor is None:
        raise ModelError("the weights are no constant", where=node.name or node.op_type, fix="report this")
    found = tensor_from(tensor, device)
    return (found if turned else found.T).contiguous()


def constant(node: onnx_ir.Node, outer: Outer) -> tuple[onnx_ir.TensorProtocol | None, bool]:
    """Constant weights, through a transpose, and whether they are [N, K]."""
    value = node.inputs[1]
    maker, turned = behind(value, is_turned(node), outer)
    direct = None if value is None else tensor_of(outer.get(value, value))
    if direct is not None:
        return direct, is_turned(node)
    first = None if value is None else outer.get(value, value).producer()
    if first is not None and is_op(first, "Transpose") and maker is None and first.inputs[0] is not None:
        if attribute(first, "perm") != [1, 0]:
            return None, turned
        source = first.inputs[0]
        return tensor_of(outer.get(source, source)), turned
    return None, turned
