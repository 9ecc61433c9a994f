"""Softmax and normalizations."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..registry import Call, Result, Tensor, rule


@rule("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Result:
    x, log = call[0], call.node.op_type == "LogSoftmax"
    function = torch.log_softmax if log else torch.softmax
    if call.opset < 13:
        axis = call.attr("axis", 1) % max(x.dim(), 1)
        return function(x.flatten(axis), -1).reshape(x.shape)
    return function(x, call.attr("axis", -1))


@rule("Hardmax")
def _hardmax(call: Call) -> Result:
    x, axis = call[0], call.attr("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


@rule("LpNormalization")
def _lp(call: Call) -> Result:
    return functional.normalize(call[0], p=call.attr("p", 2), dim=call.attr("axis", -1), eps=0.0)


@rule("LayerNormalization")
def _layer_norm(call: Call) -> Result:
    x = call[0]
    axis = call.attr("axis", -1) % x.dim()
    axes, eps = list(range(axis, x.dim())), call.attr("epsilon", 1e-5)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, keepdim=True)
    inverse = (wide.var(axes, correction=0, keepdim=True) + eps).rsqrt()
    y = ((wide - mean) * inverse).to(x.dtype) * call[1]
    bias = call.get(2)
    return [y if bias is None else y + bias, mean, inverse]


@rule("RMSNormalization")
@rule("SimplifiedLayerNormalization")
def _rms_norm(call: Call) -> Result:
    x = call[0]
    axes = list(range(call.attr("axis", -1) % x.dim(), x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = (wide.square().mean(axes, keepdim=True) + call.attr("epsilon", 1e-5)).rsqrt()
    y: Tensor = (wide * inverse).to(x.dtype) * call[1]
    return y


def _shaped(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape([1, -1] + [1] * (x.dim() - 2))


@rule("InstanceNormalization")
def _instance_norm(call: Call) -> Result:
    x = call[0]
    axes = list(range(2, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = (x.var(axes, correction=0, keepdim=True) + call.attr("epsilon", 1e-5)).rsqrt()
    y: Tensor = (x - mean) * inverse * _shaped(call[1], x) + _shaped(call[2], x)
    return y


@rule("GroupNormalization")
def _group_norm(call: Call) -> Result:
    x, groups, eps = call[0], call.attr("num_groups"), call.attr("epsilon", 1e-5)
    scale, bias = call[1], call[2]
    if scale.numel() != x.shape[1]:  # opset 18: one a group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, eps)


@rule("LRN")
def _lrn(call: Call) -> Result:
    return functional.local_response_norm(
        call[0], call.attr("size"), call.attr("alpha", 1e-4), call.attr("beta", 0.75), call.attr("bias", 1.0)
    )


@rule("MeanVarianceNormalization")
def _mvn(call: Call) -> Result:
    axes = call.attr("axes", [0, 2, 3])
    x = call[0]
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(axes, keepdim=True).sqrt() + 1e-9)
