"""Reductions and pools."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from ....ir.errors import UnsupportedError
from ....ir.graph import module_path
from ..registry import Call, Result, Tensor, rule


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).to(x.dtype),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


@rule(*_REDUCE)
def _reduce(call: Call) -> Result:
    x, axes = call[0], call.ints("axes", 1)
    if not axes:
        if call.attr("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    if not axes:
        return x
    return _REDUCE[call.node.op_type](x, axes, bool(call.attr("keepdims", 1)))


@rule("ArgMax", "ArgMin")
def _arg(call: Call) -> Result:
    x, axis, keep = call[0], call.attr("axis", 0), bool(call.attr("keepdims", 1))
    find = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    if call.attr("select_last_index", 0):
        last: Tensor = x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=keep)
        return last
    found: Tensor = find(x, dim=axis, keepdim=keep)
    return found


@rule("CumSum")
def _cumsum(call: Call) -> Result:
    x, axis = call[0], int(call[1])
    if call.attr("reverse", 0):
        x = x.flip(axis)
    total = torch.cumsum(x, axis)
    if call.attr("exclusive", 0):
        total = total - x
    return total.flip(axis) if call.attr("reverse", 0) else total


@rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Result:
    axes = list(range(2, call[0].dim()))
    if call.node.op_type == "GlobalMaxPool":
        return torch.amax(call[0], axes, keepdim=True)
    return call[0].mean(axes, keepdim=True)


def pads_of(call: Call, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Pads at the beginning and end of each spatial axis, in ONNX's order."""
    mode = call.attr("auto_pad", "NOTSET")
    given: list[int] = call.attr("pads", [0] * (2 * len(sizes)))
    if mode in ("NOTSET", ""):
        return given
    if mode == "VALID":
        return [0] * (2 * len(sizes))
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small = total // 2
        begins.append(small if mode == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    return [*begins, *ends]


def padded(x: Tensor, pads: list[int], value: float) -> Tensor:
    """``x`` with pads in ONNX's order around its last axes."""
    half = len(pads) // 2
    order = [pad for axis in range(half)[::-1] for pad in (pads[axis], pads[axis + half])]
    return functional.pad(x, order, value=value) if any(order) else x


@rule("MaxPool", "AveragePool", "LpPool")
def _pool(call: Call) -> Result:
    x, kernel = call[0], call.attr("kernel_shape")
    count = len(kernel)
    strides, dilations = call.attr("strides", [1] * count), call.attr("dilations", [1] * count)
    sizes = list(x.shape[2:])
    pads = pads_of(call, sizes, kernel, strides, dilations)
    kind = call.node.op_type
    include = bool(call.attr("count_include_pad", 0))
    ones = torch.ones_like(x[:1, :1])
    wide = padded(x, pads, float("-inf") if kind == "MaxPool" else 0.0)
    weight = padded(ones, pads, 1.0 if include else 0.0)
    if call.attr("ceil_mode", 0):
        extra = [0] * count
        for axis in range(count):
            size, reach = wide.shape[2 + axis], dilations[axis] * (kernel[axis] - 1) + 1
            out = -(-(size - reach) // strides[axis]) + 1
            if (out - 1) * strides[axis] >= sizes[axis] + pads[axis]:
                out -= 1
            extra[axis] = max(0, (out - 1) * strides[axis] + reach - size)
        more = [0] * count + extra
        wide, weight = padded(wide, more, float("-inf") if kind == "MaxPool" else 0.0), padded(weight, more, 0.0)
    for axis in range(count):
        span = dilations[axis] * (kernel[axis] - 1) + 1
        wide = wide.unfold(2 + axis, span, strides[axis])[..., :: dilations[axis]]
        weight = weight.unfold(2 + axis, span, strides[axis])[..., :: dilations[axis]]
    axes = list(range(-count, 0))
    if kind == "MaxPool":
        largest = torch.amax(wide, axes)
        return [largest, _places(call, pads, wide, strides, dilations)] if len(call.node.outputs) > 1 else largest
    if kind == "LpPool":
        p = call.attr("p", 2)
        return wide.abs().pow(p).sum(axes).pow(1 / p)
    return wide.sum(axes) / weight.sum(axes)


def _places(call: Call, pads: list[int], wide: Tensor, strides: list[int], dilations: list[int]) -> Tensor:
    """Where in the whole input, counted from its first number, the largest number of each window stands."""
    x, count = call[0], len(strides)
    if call.attr("storage_order", 0):
        raise UnsupportedError(
            "the reference backend counts places of maxima by rows only",
            where=module_path(call.node),
            fix='use backend="onnxruntime"',
        )
    size = math.prod(x.shape[2:])
    places = padded(torch.arange(size, device=x.device).reshape(1, 1, *x.shape[2:]).double(), pads, -1.0)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, wide.shape[-count:], strict=True)]
    reach = [(n - 1) * s + span for n, s, span in zip(wide.shape[2 : 2 + count], strides, spans, strict=True)]
    more = [max(0, r - n) for r, n in zip(reach, places.shape[2:], strict=True)]
    places = padded(places, [0] * count + more, -1.0)
    for axis, span in enumerate(spans):
        places = places.unfold(2 + axis, span, strides[axis])[..., :: dilations[axis]]
    best = wide.flatten(-count).argmax(-1, keepdim=True)
    flat = places.flatten(-count).expand(*wide.shape[:-count], -1)
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *[1] * count)
    return flat.gather(-1, best).squeeze(-1).long() + images * size


@rule("TopK")
def _top_k(call: Call) -> Result:
    found = torch.topk(call[0], int(call[1]), call.attr("axis", -1), bool(call.attr("largest", 1)), True)
    return [found.values, found.indices]
