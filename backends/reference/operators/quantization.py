"""Codes and what they stand for."""

from __future__ import annotations

from typing import Any

import onnx_ir
import torch

from ..registry import Call, Result, Tensor, dtype_of, rule

_RANGE = {
    onnx_ir.DataType.UINT8: (0, 255), onnx_ir.DataType.INT8: (-128, 127), onnx_ir.DataType.UINT4: (0, 15),
    onnx_ir.DataType.INT4: (-8, 7), onnx_ir.DataType.UINT2: (0, 3), onnx_ir.DataType.INT2: (-2, 1),
    onnx_ir.DataType.UINT16: (0, 65535), onnx_ir.DataType.INT16: (-32768, 32767),
}  # fmt: skip


def _spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points as they apply to each place of ``x``."""
    if parameter.numel() == 1:
        return parameter.reshape([])
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])


@rule("DequantizeLinear")
def _dequantize(call: Call) -> Result:
    x, scale, zero = call[0], call[1], call.get(2)
    axis, block = call.attr("axis", 1), call.attr("block_size", 0)
    values = x.to(scale.dtype)
    if zero is not None:
        values = values - _spread(zero, x, axis, block).to(scale.dtype)
    return values * _spread(scale, x, axis, block)


@rule("QuantizeLinear")
def _quantize(call: Call) -> Result:
    x, scale, zero = call[0], call[1], call.get(2)
    axis, block = call.attr("axis", 1), call.attr("block_size", 0)
    kind = call.node.outputs[0].dtype or onnx_ir.DataType.UINT8
    value = call.node.inputs[2] if len(call.node.inputs) > 2 else None
    if value is not None and value.dtype is not None:
        kind = value.dtype
    ratio = x / _spread(scale, x, axis, block)
    if kind not in _RANGE:
        return ratio.to(dtype_of(kind))
    offset = torch.zeros([]) if zero is None else _spread(zero, x, axis, block).to(ratio.dtype)
    if torch.is_grad_enabled() and ratio.requires_grad:
        # Codes of an integer type have no derivative: these stay numbers, which a DequantizeLinear takes as well.
        learned: Tensor = _Through.apply(ratio, offset, *_RANGE[kind])  # type: ignore[no-untyped-call]
        return learned
    return (torch.round(ratio) + offset).clamp(*_RANGE[kind]).to(dtype_of(kind))


class _Through(torch.autograd.Function):
    """``clamp(round(r) + z, low, high)``; dr passes where nothing is clamped (Bengio et al. 2013).

    With the ``DequantizeLinear`` behind it, ``s (codes - z)`` of ``r = x / s``, the derivative by s is that of learned
    step sizes (LSQ, Esser et al. 2020, equation 3): ``round(r) - r`` inside, ``codes - z`` where clamped.
    """

    @staticmethod
    def forward(ctx: Any, ratio: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
        codes = torch.round(ratio).add_(offset)
        ctx.save_for_backward((codes >= low).logical_and_(codes <= high))
        return codes.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


@rule("DynamicQuantizeLinear")
def _dynamic(call: Call) -> Result:
    x = call[0]
    high, low = torch.clamp(x.max(), min=0), torch.clamp(x.min(), max=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / torch.where(scale == 0, torch.ones_like(scale), scale)), 0, 255)
    codes = torch.clamp(torch.round(x / torch.where(scale == 0, torch.ones_like(scale), scale)) + zero, 0, 255)
    return [codes.to(torch.uint8), scale, zero.to(torch.uint8)]
