"""Shapes of operators that select, repeat and place elements: slice, gather, concat, pad and the like."""

from __future__ import annotations

from collections.abc import Sequence

from ..symbolic import (
    UNKNOWN,
    Dim,
    add,
    ceil_div,
    floor_div,
    integral,
    known,
    maximum,
    minimum,
    mul,
    nonnegative,
    sub,
    total,
)
from ..transfer import slice_positions
from .node_view import DataType, ShapeError, Typed, View, broadcast, normalize, rule, show, unify_dim


@rule("Concat")
def _concat(view: View) -> list[Typed]:
    shapes = [view.dims(i) for i in range(len(view.node.inputs))]
    dtype = view.common_dtype(*range(len(view.node.inputs)))
    first = next((s for s in shapes if s is not None), None)
    if first is None:
        return [(dtype, None)]
    axis = normalize(view.attr("axis", 1), len(first))
    result: list[Dim] = list(first)
    for shape in shapes:
        if shape is None:
            continue
        if len(shape) != len(first):
            raise ShapeError(f"Concat of shapes {show(first)} and {show(shape)}")
        for i in range(len(first)):
            if i != axis:
                result[i] = unify_dim(result[i], shape[i])
    result[axis] = UNKNOWN if any(s is None for s in shapes) else total(s[axis] for s in shapes if s is not None)
    return [(dtype, tuple(result))]


@rule("Split")
def _split(view: View) -> list[Typed]:
    dims, count = view.dims(0), len(view.node.outputs)
    if dims is None:
        return [(view.dtype(0), None)] * count
    axis = normalize(view.attr("axis", 0), len(dims))
    sizes: list[Dim]
    if view.input(1) is not None:
        sizes = view.sizes(1) or [UNKNOWN] * count
    elif view.attr("split") is not None:
        sizes = view.attr("split")
    else:
        size = dims[axis]
        if isinstance(size, int):
            each = -(-size // count)
            sizes = [max(0, min(each, size - each * i)) for i in range(count)]
        elif count == 1:
            sizes = [size]
        else:
            sizes = [UNKNOWN] * count
    if len(sizes) != count:
        raise ShapeError(f"Split into {len(sizes)} sizes has {count} outputs")
    return [(view.dtype(0), (*dims[:axis], size, *dims[axis + 1 :])) for size in sizes]


@rule("Slice")
def _slice(view: View) -> list[Typed]:
    dims = view.dims(0)
    if dims is None:
        return [(view.dtype(0), None)]
    starts: Sequence[Dim] | None
    ends: Sequence[Dim] | None
    if len(view.node.inputs) == 1:
        starts, ends, axes, steps = (view.attr(n) for n in ("starts", "ends", "axes", "steps"))
    else:
        starts, ends = view.sizes(1), view.sizes(2)
        axes = view.ints(3) if view.input(3) is not None else None
        steps = view.ints(4) if view.input(4) is not None else None
        if view.input(3) is not None and axes is None:
            return [(view.dtype(0), (UNKNOWN,) * len(dims))]
        if view.input(4) is not None and steps is None and starts is not None:
            starts = [UNKNOWN] * len(starts)
    count = len(axes) if axes is not None else len(starts) if starts is not None else len(dims)
    axes = list(range(count)) if axes is None else axes
    starts = [UNKNOWN] * count if starts is None else starts
    ends = [UNKNOWN] * count if ends is None else ends
    steps = [1] * count if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ShapeError("Slice has starts, ends, axes and steps of different lengths")
    result = list(dims)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = normalize(axis, len(dims))
        result[axis] = sliced(result[axis], start, end, step)
    return [(view.dtype(0), tuple(result))]


_FAR = 10**9
"""Bounds at least this large mean "to the end": no dimension is."""


def sliced(size: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """How many elements ``size[start:end:step]`` has."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        if step == 0:
            raise ShapeError("Slice by a step of 0")
        return len(slice_positions(size, start, end, step))
    if not (known(size) and known(start) and known(end)):
        return UNKNOWN
    if step < 0:
        whole = isinstance(start, int) and (start == -1 or start >= _FAR) and isinstance(end, int) and end <= -_FAR
        return ceil_div(size, -step) if whole else UNKNOWN
    first, last = _bound(size, start), _bound(size, end)
    if not (known(first) and known(last)):
        return UNKNOWN
    length = sub(last, first)
    if not nonnegative(length) and not (isinstance(start, int) and isinstance(end, int) and _short(start, end)):
        length = maximum(0, length)
    return length if step == 1 else ceil_div(length, step)


def _short(start: int, end: int) -> bool:
    """Whether a slice drops or takes one element at an end: sizes are taken to be large enough for that."""
    return (start in (1, -1) and end >= _FAR) or (start == 0 and end == -1)


def _bound(size: Dim, position: Dim) -> Dim:
    """A slice bound counted from the front and clamped to [0, size]."""
    if isinstance(position, int):
        if position >= _FAR:
            return size
        if position == 0:
            return 0
        if position < 0:
            if position <= -_FAR:
                return 0
            place = add(size, position)
            return place if position == -1 or nonnegative(place) else maximum(0, place)
        if position == 1 and not isinstance(size, int):
            return 1
    elif not nonnegative(position):
        # It may count from either end.
        back = sub(0, position)
        return sub(size, back) if nonnegative(back) and nonnegative(sub(size, back)) else UNKNOWN
    return position if nonnegative(sub(size, position)) else minimum(position, size)


@rule("Gather")
def _gather(view: View) -> list[Typed]:
    data, indices = view.dims(0), view.dims(1)
    if data is None or indices is None:
        return [(view.dtype(0), None)]
    axis = normalize(view.attr("axis", 0), len(data))
    return [(view.dtype(0), data[:axis] + indices + data[axis + 1 :])]


@rule("GatherElements")
def _gather_elements(view: View) -> list[Typed]:
    return [(view.dtype(0), view.dims(1))]


@rule("GatherND")
def _gather_nd(view: View) -> list[Typed]:
    data, indices = view.dims(0), view.dims(1)
    if data is None or indices is None or not indices or not isinstance(indices[-1], int):
        return [(view.dtype(0), None)]
    batch = view.attr("batch_dims", 0)
    return [(view.dtype(0), indices[:-1] + data[batch + indices[-1] :])]


@rule("Scatter", "ScatterElements", "ScatterND", "TensorScatter", "ReverseSequence")
def _scatter(view: View) -> list[Typed]:
    return [(view.dtype(0), view.dims(0))]


@rule("Expand")
def _expand(view: View) -> list[Typed]:
    target = view.sizes(1)
    return [(view.dtype(0), None if target is None else broadcast(view.dims(0), tuple(target)))]


@rule("Tile")
def _tile(view: View) -> list[Typed]:
    dims, repeats = view.dims(0), view.sizes(1)
    if dims is None:
        return [(view.dtype(0), None if repeats is None else (UNKNOWN,) * len(repeats))]
    if repeats is None:
        return [(view.dtype(0), (UNKNOWN,) * len(dims))]
    if len(repeats) != len(dims):
        raise ShapeError(f"Tile of {show(dims)} by {len(repeats)} repeats")
    return [(view.dtype(0), tuple(map(mul, dims, repeats)))]


@rule("Pad")
def _pad(view: View) -> list[Typed]:
    dims = view.dims(0)
    if dims is None:
        return [(view.dtype(0), None)]
    pads: Sequence[Dim] | None = view.attr("pads", view.attr("paddings")) if view.input(1) is None else view.sizes(1)
    axes: Sequence[int] | None = range(len(dims))
    if view.input(3) is not None:
        axes = view.ints(3)
    if pads is None or axes is None:
        return [(view.dtype(0), (UNKNOWN,) * len(dims))]
    if len(pads) != 2 * len(axes):
        raise ShapeError(f"Pad of {len(axes)} axes has {len(pads)} amounts")
    result = list(dims)
    for i, axis in enumerate(axes):
        axis = normalize(axis, len(dims))
        result[axis] = add(add(result[axis], pads[i]), pads[i + len(axes)])
    return [(view.dtype(0), tuple(result))]


@rule("ConstantOfShape")
def _constant_of_shape(view: View) -> list[Typed]:
    tensor = view.attr("value")
    dtype = DataType.FLOAT if tensor is None else tensor.dtype
    target = view.sizes(0)
    return [(dtype, None if target is None else tuple(target))]


@rule("Range")
def _range(view: View) -> list[Typed]:
    values = [view.sizes(i) for i in range(3)]
    start, limit, step = (v[0] if v else UNKNOWN for v in values)
    dtype = view.dtype(0)
    length: Dim = UNKNOWN
    if isinstance(start, int) and isinstance(limit, int) and isinstance(step, int) and step != 0:
        length = len(range(start, limit, step))
    elif isinstance(step, int) and step > 0 and known(limit) and integral(limit) and integral(start):
        span = sub(limit, start)
        length = ceil_div(span if nonnegative(span) else maximum(0, span), step)
    return [(dtype, (length,))]


@rule("OneHot")
def _one_hot(view: View) -> list[Typed]:
    dims, depth = view.dims(0), view.sizes(1)
    if dims is None:
        return [(view.dtype(2), None)]
    axis = normalize(view.attr("axis", -1), len(dims) + 1)
    return [(view.dtype(2), (*dims[:axis], depth[0] if depth else UNKNOWN, *dims[axis:]))]


@rule("TopK")
def _top_k(view: View) -> list[Typed]:
    dims = view.dims(0)
    k = [view.attr("k")] if view.attr("k") is not None else view.sizes(1)
    if dims is not None:
        axis = normalize(view.attr("axis", -1), len(dims))
        dims = (*dims[:axis], k[0] if k else UNKNOWN, *dims[axis + 1 :])
    return [(view.dtype(0), dims), (DataType.INT64, dims)]


@rule("NonZero")
def _non_zero(view: View) -> list[Typed]:
    dims = view.dims(0)
    return [(DataType.INT64, (UNKNOWN if dims is None else len(dims), UNKNOWN))]


@rule("EyeLike")
def _eye_like(view: View) -> list[Typed]:
    to = view.attr("dtype")
    return [(DataType(to) if to else view.dtype(0), view.dims(0))]


@rule("Resize")
def _resize(view: View) -> list[Typed] | None:
    dims = view.dims(0)
    if view.opset < 11 or dims is None:
        return None
    scales, sizes = view.sizes(2) if view.input(2) is not None else None, None
    if view.input(3) is not None:
        sizes = view.sizes(3)
    axes = [normalize(a, len(dims)) for a in view.attr("axes", list(range(len(dims))))]
    result = list(dims)
    if sizes and len(sizes) == len(axes):
        if view.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        for axis, size in zip(axes, sizes, strict=True):
            result[axis] = size
        return [(view.dtype(0), tuple(result))]
    if scales and len(scales) == len(axes):
        if view.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
            return None
        for axis, scale in zip(axes, scales, strict=True):
            result[axis] = floor_div(mul(result[axis], scale), 1)
        return [(view.dtype(0), tuple(result))]
    return None


@rule("Compress")
def _compress(view: View) -> list[Typed]:
    dims, axis = view.dims(0), view.attr("axis")
    if axis is None:
        return [(view.dtype(0), (UNKNOWN,))]
    if dims is None:
        return [(view.dtype(0), None)]
    axis = normalize(axis, len(dims))
    return [(view.dtype(0), (*dims[:axis], UNKNOWN, *dims[axis + 1 :]))]


@rule("GridSample")
def _grid_sample(view: View) -> list[Typed]:
    dims, grid = view.dims(0), view.dims(1)
    if dims is None or grid is None:
        return [(view.dtype(0), None)]
    return [(view.dtype(0), (unify_dim(dims[0], grid[0]), dims[1], *grid[1:-1]))]


@rule("Constant")
def _constant(view: View) -> list[Typed]:
    (name, attr), *_ = view.node.attributes.items()
    if name in ("value", "sparse_value"):
        return [(attr.value.dtype, tuple(attr.value.shape))]
    dtype = {"f": DataType.FLOAT, "i": DataType.INT64, "s": DataType.STRING}[name.removeprefix("value_")[0]]
    return [(dtype, (len(attr.value),) if name.endswith("s") else ())]
