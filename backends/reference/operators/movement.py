"""Operators that move, select or make places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..registry import Call, Result, Tensor, dtype_of, rule, tensor_from


@rule("Constant")
def _constant(call: Call) -> Result:
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32),
                        ("value_int", torch.int64), ("value_ints", torch.int64)):  # fmt: skip
        if (found := call.attr(name)) is not None:
            return torch.tensor(found, dtype=dtype, device=call.device)
    return tensor_from(call.attr("value"), call.device)


@rule("ConstantOfShape")
def _of_shape(call: Call) -> Result:
    value = call.attr("value")
    filled = torch.zeros(1) if value is None else tensor_from(value, call.device).reshape(1)
    return filled.to(call.device).expand([int(n) for n in call[0]]).clone()


@rule("Shape")
def _shape(call: Call) -> Result:
    sizes = list(call[0].shape)[call.attr("start", 0) : call.attr("end", None)]
    return torch.tensor(sizes, dtype=torch.int64, device=call.device)


@rule("Size")
def _size(call: Call) -> Result:
    return torch.tensor(call[0].numel(), dtype=torch.int64, device=call.device)


@rule("Range")
def _range(call: Call) -> Result:
    return torch.arange(call[0].item(), call[1].item(), call[2].item(), dtype=call[0].dtype, device=call.device)


@rule("EyeLike")
def _eye(call: Call) -> Result:
    n, m = call[0].shape
    dtype = dtype_of(call.attr("dtype")) if call.attr("dtype") is not None else call[0].dtype
    return torch.ones(n, m, device=call.device).triu(call.attr("k", 0)).tril(call.attr("k", 0)).to(dtype)


@rule("Reshape")
def _reshape(call: Call) -> Result:
    target = [int(n) for n in call[1]]
    if not call.attr("allowzero", 0):
        target = [call[0].shape[i] if n == 0 else n for i, n in enumerate(target)]
    if -1 in target and not call[0].numel():
        # What is left of no elements is not in the numbers: the graph may know it.
        shape = call.node.outputs[0].shape
        known = None if shape is None else shape[target.index(-1)]
        target[target.index(-1)] = known if isinstance(known, int) else 0
    return call[0].reshape(target)


@rule("Flatten")
def _flatten(call: Call) -> Result:
    x, axis = call[0], call.attr("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


@rule("Squeeze")
def _squeeze(call: Call) -> Result:
    axes = call.ints("axes", 1)
    return call[0].squeeze() if axes is None else call[0].squeeze(axes)


@rule("Unsqueeze")
def _unsqueeze(call: Call) -> Result:
    x, axes = call[0], call.ints("axes", 1) or []
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@rule("Transpose")
def _transpose(call: Call) -> Result:
    return call[0].permute(call.attr("perm", list(range(call[0].dim()))[::-1]))


@rule("Concat")
def _concat(call: Call) -> Result:
    return torch.cat([x for x in call.x if x is not None], call.attr("axis"))


@rule("Split")
def _split(call: Call) -> Result:
    x, axis, sizes = call[0], call.attr("axis", 0), call.ints("split", 1)
    if sizes is None:
        count = call.attr("num_outputs", len(call.node.outputs))
        each = -(-x.shape[axis] // count)
        sizes = [max(0, min(each, x.shape[axis] - i * each)) for i in range(count)]
    return list(torch.split(x, sizes, axis))


@rule("Slice")
def _slice(call: Call) -> Result:
    x = call[0]
    starts, ends = call.ints("starts", 1) or [], call.ints("ends", 2) or []
    axes = call.ints("axes", 3) or list(range(len(starts)))
    steps = call.ints("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, _ = slice(start, end, step).indices(x.shape[axis])
        if step == 1:
            x = x.narrow(axis, first, max(0, last - first))
        else:
            x = x.index_select(axis, torch.arange(first, last, step, device=x.device))
    return x


@rule("Gather")
def _gather(call: Call) -> Result:
    x, indices = call[0], call[1].long()
    axis = call.attr("axis", 0) % x.dim()
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@rule("GatherElements")
def _gather_elements(call: Call) -> Result:
    x, indices, axis = call[0], call[1].long(), call.attr("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@rule("GatherND")
def _gather_nd(call: Call) -> Result:
    x, indices, batch = call[0], call[1].long(), call.attr("batch_dims", 0)
    if batch == 0:
        return x[tuple(indices[..., i] for i in range(indices.shape[-1]))]
    lead = [torch.arange(n, device=x.device).reshape([-1 if i == j else 1 for j in range(indices.dim() - 1)])
            for i, n in enumerate(x.shape[:batch])]  # fmt: skip
    return x[(*lead, *(indices[..., i] for i in range(indices.shape[-1])))]


@rule("ScatterElements", "Scatter")
def _scatter(call: Call) -> Result:
    x, indices, updates, axis = call[0], call[1].long(), call[2], call.attr("axis", 0)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    how = call.attr("reduction", "none")
    if how == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how])


@rule("ScatterND")
def _scatter_nd(call: Call) -> Result:
    x, indices, updates = call[0], call[1].long(), call[2]
    places = tuple(indices[..., i] for i in range(indices.shape[-1]))
    how = call.attr("reduction", "none")
    if how in ("none", "add"):
        return x.index_put(places, updates, accumulate=how == "add")
    result = x.clone()
    flat = indices.reshape(-1, indices.shape[-1])
    for row, update in zip(flat, updates.reshape(len(flat), *updates.shape[indices.dim() - 1 :]), strict=True):
        at = tuple(row.tolist())
        combine = {"mul": torch.mul, "max": torch.maximum, "min": torch.minimum}[how]
        result[at] = combine(result[at], update)
    return result


@rule("Expand")
def _expand(call: Call) -> Result:
    return call[0].expand(np.broadcast_shapes(tuple(call[0].shape), tuple(int(n) for n in call[1])))


@rule("Tile")
def _tile(call: Call) -> Result:
    return call[0].repeat([int(n) for n in call[1]])


@rule("Pad")
def _pad(call: Call) -> Result:
    x, pads, mode = call[0], call.ints("pads", 1) or [], call.attr("mode", "constant")
    given = call.get(3)
    axes = list(range(x.dim())) if given is None else [int(a) % x.dim() for a in given]
    fill = call.get(2)
    value = call.attr("value", 0.0) if fill is None else fill.item()
    for at, axis in enumerate(axes):
        begin, end = pads[at], pads[at + len(axes)]
        size = x.shape[axis]
        if begin < 0 or end < 0:
            x = x.narrow(axis, max(0, -begin), size - max(0, -begin) - max(0, -end))
            begin, end, size = max(0, begin), max(0, end), x.shape[axis]
        if not begin and not end:
            continue
        if mode == "constant":
            shape = list(x.shape)
            parts = [torch.full([*shape[:axis], n, *shape[axis + 1 :]], value, dtype=x.dtype, device=x.device)
                     for n in (begin, end)]  # fmt: skip
            x = torch.cat([parts[0], x, parts[1]], axis)
            continue
        places = np.pad(np.arange(size), (begin, end), mode)
        x = x.index_select(axis, torch.as_tensor(places, device=x.device))
    return x


@rule("DepthToSpace")
def _depth_to_space(call: Call) -> Result:
    x, block = call[0], call.attr("blocksize")
    n, c, h, w = x.shape
    if call.attr("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    return (
        x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block, w * block)
    )


@rule("SpaceToDepth")
def _space_to_depth(call: Call) -> Result:
    x, block = call[0], call.attr("blocksize")
    n, c, h, w = x.shape
    cut = x.reshape(n, c, h // block, block, w // block, block)
    return cut.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // block, w // block)


@rule("OneHot")
def _one_hot(call: Call) -> Result:
    indices, depth, values = call[0].long(), int(call[1]), call[2]
    hot = functional.one_hot(indices % depth, depth).movedim(-1, call.attr("axis", -1))
    return torch.where(hot.bool(), values[1], values[0])


@rule("NonZero")
def _non_zero(call: Call) -> Result:
    return torch.nonzero(call[0]).T


@rule("Resize", "Upsample")
def _resize(call: Call) -> Result:
    x = call[0]
    old = call.node.op_type == "Upsample"
    scales = call.get(1 if old else 2)
    sizes = None if old else call.get(3)
    given = call.attr("axes")
    axes = list(range(x.dim())) if given is None else [a % x.dim() for a in given]
    mode, way = call.attr("mode", "nearest"), call.attr("coordinate_transformation_mode", "half_pixel")
    if old:
        way = "asymmetric"
    for at, axis in enumerate(axes):
        before = x.shape[axis]
        after = int(sizes[at]) if sizes is not None else int(np.floor(before * float(scales[at])))  # type: ignore[index]
        scale = after / before if sizes is not None else float(scales[at])  # type: ignore[index]
        if after != before or scale != 1:
            rounding = "floor" if old else call.attr("nearest_mode", "round_prefer_floor")
            x = _resample(x, axis, before, after, scale, mode, way, rounding)
    return x


def _resample(
    x: Tensor, axis: int, before: int, after: int, scale: float, mode: str, way: str, rounding: str
) -> Tensor:
    place = np.arange(after, dtype=np.float64)
    if way == "asymmetric":
        source = place / scale
    elif way == "align_corners":
        source = place * (before - 1) / max(after - 1, 1)
    elif way == "pytorch_half_pixel" and after == 1:
        source = np.zeros(1)
    else:
        source = (place + 0.5) / scale - 0.5
    if mode == "nearest":
        rules: dict[str, Callable[[Any], Any]] = {
            "round_prefer_floor": lambda v: np.ceil(v - 0.5), "round_prefer_ceil": lambda v: np.floor(v + 0.5),
            "floor": np.floor, "ceil": np.ceil,
        }  # fmt: skip
        chosen = np.clip(rules[rounding](source), 0, before - 1).astype(np.int64)
        return x.index_select(axis, torch.as_tensor(chosen, device=x.device))
    if mode != "linear":
        raise NotImplementedError(f"Resize by {mode} interpolation")
    low = np.clip(np.floor(source), 0, before - 1).astype(np.int64)
    high = np.clip(low + 1, 0, before - 1)
    share = torch.as_tensor(np.clip(source - low, 0, 1), dtype=x.dtype, device=x.device)
    share = share.reshape([-1 if a == axis else 1 for a in range(x.dim())])
    one, two = (x.index_select(axis, torch.as_tensor(i, device=x.device)) for i in (low, high))
    return one * (1 - share) + two * share
