"""Operators that move, repeat or select elements: expressions of indices, not copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import sympy

from ..arrays import (
    FLOATS,
    Array,
    Bound,
    Choice,
    Number,
    Position,
    Unfit,
    cast,
    compute,
    expanded,
    moved,
    number,
    reshaped,
    transposed,
)
from ..indexing import ZERO, Expr, Index, Ranges
from ..reading import Reader
from .registry import Operator, Result, rule

_Where: TypeAlias = "Callable[[Reader, Index], Index]"


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(op: Operator) -> Result:
    return reshaped(op[0], op.shape())


@rule("Transpose")
def _transpose(op: Operator) -> Result:
    return transposed(op[0], op.attr("perm", list(range(len(op[0].shape)))[::-1]))


@rule("Expand")
def _expand(op: Operator) -> Result:
    return expanded(op[0], op.shape())


@rule("Tile")
def _tile(op: Operator) -> Result:
    x = op[0]

    def where(reader: Reader, index: Index) -> Index:
        return tuple(reader.ranges.remainder(i, size) for i, size in zip(index, x.shape, strict=True))

    return moved(x, op.shape(), where)


def _along(x: Array, axis: int, shape: Index, place: Callable[[Ranges, Expr], Expr]) -> Array:
    """``x`` read at another place along one axis."""

    def where(reader: Reader, index: Index) -> Index:
        return (*index[:axis], place(reader.ranges, index[axis]), *index[axis + 1 :])

    return moved(x, shape, where)


@rule("Slice")
def _slice(op: Operator) -> Result:
    x = op[0]
    starts = op.expressions("starts", 1)
    steps, axes = op.ints("steps", 4), op.ints("axes", 3)
    if starts is None:
        raise Unfit("its starts are not known")
    axes = [a % len(x.shape) for a in (axes if axes is not None else range(len(starts)))]
    steps = steps or [1] * len(starts)
    shape = op.shape()
    for start, step, axis in zip(starts, steps, axes, strict=True):
        size = x.shape[axis]
        first = _first(start, step, size)
        sizes = (*x.shape[:axis], shape[axis], *x.shape[axis + 1 :])
        if first == 0 and step == 1:
            x = expanded(x, x.shape) if sizes == x.shape else _along(x, axis, sizes, lambda ranges, i: i)
            continue
        x = _along(x, axis, sizes, lambda ranges, i, first=first, step=step: sympy.expand(first + i * step))  # type: ignore[misc]
    return x


def _first(start: Expr, step: int, size: Expr) -> Expr:
    """Where a slice begins, counted from the front."""
    if start.is_Integer and int(start) < 0:
        start = size + start
        if size.is_Integer:
            start = sympy.Integer(max(int(start), 0))
        elif step < 0 and start != size - 1:
            raise Unfit("it goes backwards from a place that depends on a size")
        return start
    if start.is_Integer and size.is_Integer:
        return sympy.Integer(min(int(start), int(size) if step > 0 else int(size) - 1))
    if step < 0:
        if start.is_Integer and int(start) >= 2**31 - 1:
            return size - 1
        raise Unfit("it goes backwards from a place that depends on a size")
    return start


@rule("Split")
def _split(op: Operator) -> Result:
    x = op[0]
    axis = op.axis(0, len(x.shape))
    offset: Expr = ZERO
    parts: list[Array | None] = []
    for n in range(len(op.node.outputs)):
        shape = op.shape(n)
        parts.append(_along(x, axis, shape, lambda ranges, i, offset=offset: i + offset))  # type: ignore[misc]
        offset = offset + shape[axis]
    return parts


@rule("Concat")
def _concat(op: Operator) -> Result:
    parts = [x for x in op.x if x is not None and not any(size == 0 for size in x.shape)]
    if not parts:
        raise Unfit("nothing to put together")
    shape = op.shape()
    axis = op.axis(0, len(shape))
    ends: list[Expr] = []
    for x in parts:
        ends.append((ends[-1] if ends else ZERO) + x.shape[axis])
    result: Array | None = None
    for n in reversed(range(len(parts))):
        begin = ends[n] - parts[n].shape[axis]
        here = _along(parts[n], axis, shape, lambda ranges, i, begin=begin: i - begin)  # type: ignore[misc]
        if result is None:
            result = here
            continue
        end = ends[n]
        result = Choice(shape, op.dtype(), lambda index, end=end: [Bound(index[axis], None, end)], here, result)  # type: ignore[misc]
    assert result is not None
    return result


def whole_index(indices: Array, size: Expr) -> Array:
    """Indices that may count from the end, brought into the axis: what is outside reads its last element."""
    length = Position((), indices.dtype, lambda ranges, index: size)
    code = "tl.minimum(tl.maximum(tl.where({0} < 0, {0} + {1}, {0}), 0), {1} - 1)"
    if isinstance(indices, Number):
        indices = compute("({0} + 0)", indices)
    return compute(code, indices, length)


@rule("Gather")
def _gather(op: Operator) -> Result:
    x, shape = op[0], op.shape()
    axis = op.axis(0, len(x.shape))
    given = op.constant(1)
    if given is not None and given.size == 1 and x.shape[axis].is_Integer:
        place = int(given.reshape(-1)[0]) % max(int(x.shape[axis]), 1)
        rank = given.ndim
        return moved(x, shape, lambda reader, index: (*index[:axis], sympy.Integer(place), *index[axis + rank :]))
    indices = whole_index(op[1], x.shape[axis])
    rank = len(op[1].shape)

    def where(reader: Reader, index: Index) -> Index:
        chosen = reader.element(indices, index[axis : axis + rank], x.shape[axis])
        return (*index[:axis], chosen, *index[axis + rank :])

    return moved(x, shape, where, indices)


@rule("GatherElements")
def _gather_elements(op: Operator) -> Result:
    x = op[0]
    axis = op.axis(0, len(x.shape))
    indices = whole_index(op[1], x.shape[axis])

    def where(reader: Reader, index: Index) -> Index:
        return (*index[:axis], reader.element(indices, index, x.shape[axis]), *index[axis + 1 :])

    return moved(x, op[1].shape, where, indices)


@rule("GatherND")
def _gather_nd(op: Operator) -> Result:
    x, indices, batch = op[0], op[1], op.attr("batch_dims", 0)
    width = indices.shape[-1]
    if not width.is_Integer:
        raise Unfit("how many indices belong together is not known")
    lead = len(indices.shape) - 1
    columns = [
        whole_index(
            moved(indices, indices.shape[:-1], lambda reader, index, n=n: (*index, sympy.Integer(n))),  # type: ignore[misc]
            x.shape[batch + n],
        )
        for n in range(int(width))
    ]

    def where(reader: Reader, index: Index) -> Index:
        chosen = [reader.element(c, index[:lead], x.shape[batch + n]) for n, c in enumerate(columns)]
        return (*index[:batch], *chosen, *index[lead:])

    return moved(x, op.shape(), where, *columns)


@rule("Pad")
def _pad(op: Operator) -> Result:
    x, mode = op[0], op.attr("mode", "constant")
    pads = op.expressions("pads", 1)
    if pads is None:
        raise Unfit("its pads are not known")
    axes = op.ints("axes", 3) if op.opset >= 18 else None
    axes = [a % len(x.shape) for a in axes] if axes is not None else list(range(len(x.shape)))
    fill: Array = number(_value(op.attr("value", 0.0), x.dtype), x.dtype)
    if op.opset >= 11 and op.get(2) is not None:
        given = op.get(2)
        assert given is not None
        fill = Number((), x.dtype, given.value) if isinstance(given, Number) else reshaped(given, ())
    shape = op.shape()
    for n, axis in enumerate(axes):
        begin, end = pads[n], pads[n + len(axes)]
        if begin == 0 and end == 0:
            continue
        size, after = x.shape[axis], (*x.shape[:axis], shape[axis], *x.shape[axis + 1 :])
        if mode == "constant":
            inner = _along(x, axis, after, lambda ranges, i, begin=begin: i - begin)  # type: ignore[misc]
            bounds = lambda index, axis=axis, begin=begin, size=size: [Bound(index[axis] - begin, ZERO, size)]  # noqa: E731
            x = Choice(after, x.dtype, bounds, inner, fill)
        elif mode == "wrap" and size.is_Integer and begin.is_Integer:
            shift = (-int(begin)) % max(int(size), 1)
            x = _along(x, axis, after, lambda ranges, i, s=shift, size=size: ranges.remainder(i + s, size))  # type: ignore[misc]
        else:
            x = _looked_up(x, axis, after, _padded_places(mode, size, begin, end))
    return x


def _value(value: float, dtype: str) -> float | int | bool:
    return float(value) if dtype in FLOATS else bool(value) if dtype == "int1" else int(value)


def _padded_places(mode: str, size: Expr, begin: Expr, end: Expr) -> list[int]:
    if not (size.is_Integer and begin.is_Integer and end.is_Integer) or begin < 0 or end < 0:
        raise Unfit(f"{mode} padding of a size that is not known")
    return [int(n) for n in np.pad(np.arange(int(size)), (int(begin), int(end)), mode)]  # type: ignore[call-overload]


def _looked_up(x: Array, axis: int, shape: Index, places: Sequence[int]) -> Array:
    """``x`` read along one axis at places that form few arithmetic sequences."""
    pieces: list[tuple[int, int, int]] = []  # begin, place there, step
    n = 0
    while n < len(places):
        step = places[n + 1] - places[n] if n + 1 < len(places) else 0
        end = n + 1
        while end < len(places) and places[end] - places[end - 1] == step:
            end += 1
        pieces.append((n, places[n], step))
        n = end
    if len(pieces) > 8:
        raise Unfit("places that follow no rule")
    result: Array | None = None
    for n in reversed(range(len(pieces))):
        begin, first, step = pieces[n]
        here = _along(x, axis, shape, lambda ranges, i, b=begin, f=first, s=step: sympy.expand(f + (i - b) * s))  # type: ignore[misc]
        if result is None:
            result = here
            continue
        end_ = sympy.Integer(pieces[n + 1][0])
        result = Choice(shape, x.dtype, lambda index, end_=end_: [Bound(index[axis], None, end_)], here, result)  # type: ignore[misc]
    assert result is not None
    return result


@rule("CenterCropPad")
def _center(op: Operator) -> Result:
    x, shape = op[0], op.shape()
    for axis, (size, after) in enumerate(zip(x.shape, shape, strict=True)):
        if size == after:
            continue
        if not (size.is_Integer and after.is_Integer):
            raise Unfit("sizes are not known")
        before = int(after) - int(size)
        begin = before // 2 if before > 0 else -(-before // 2)
        sizes = (*x.shape[:axis], after, *x.shape[axis + 1 :])
        inner = _along(x, axis, sizes, lambda ranges, i, begin=begin: i - begin)  # type: ignore[misc]
        if before < 0:
            x = inner
            continue
        fill = number(_value(0.0, x.dtype), x.dtype)
        bounds = lambda index, axis=axis, begin=begin, size=size: [Bound(index[axis] - begin, ZERO, size)]  # noqa: E731
        x = Choice(sizes, x.dtype, bounds, inner, fill)
    return x


@rule("DepthToSpace")
def _depth_to_space(op: Operator) -> Result:
    x, block = op[0], sympy.Integer(op.attr("blocksize"))
    n, c, h, w = x.shape
    deep = _over(c, block * block)
    if op.attr("mode", "DCR") == "CRD":
        split = reshaped(x, (n, deep, block, block, h, w))
        return reshaped(transposed(split, (0, 1, 4, 2, 5, 3)), op.shape())
    split = reshaped(x, (n, block, block, deep, h, w))
    return reshaped(transposed(split, (0, 3, 4, 1, 5, 2)), op.shape())


def _over(size: Expr, by: Expr) -> Expr:
    """A size divided by what divides it."""
    if not size.is_Integer:
        raise Unfit("the number of channels is not known")
    return sympy.Integer(int(size) // int(by))


@rule("SpaceToDepth")
def _space_to_depth(op: Operator) -> Result:
    x, block = op[0], sympy.Integer(op.attr("blocksize"))
    n, c, h, w = x.shape
    if not (h.is_Integer and w.is_Integer):
        raise Unfit("sizes are not known")
    split = reshaped(x, (n, c, _over(h, block), block, _over(w, block), block))
    return reshaped(transposed(split, (0, 3, 5, 1, 2, 4)), op.shape())


@rule("OneHot")
def _one_hot(op: Operator) -> Result:
    indices, values, shape = op[0], op[2], op.shape()
    if indices.dtype in FLOATS:
        raise Unfit("indices that are no integers")
    axis = op.axis(-1, len(shape))
    depth = shape[axis]
    at = moved(indices, shape, lambda reader, index: (*index[:axis], *index[axis + 1 :]))
    length = Position((), indices.dtype, lambda ranges, index: depth)
    place = Position(shape, indices.dtype, lambda ranges, index: index[axis])
    wrapped = compute("tl.where({0} < 0, {0} + {1}, {0})", at, length)
    off, on = (moved(values, shape, lambda reader, index, n=n: (sympy.Integer(n),)) for n in (0, 1))  # type: ignore[misc]
    return compute("tl.where({0} == {1}, {2}, {3})", wrapped, place, on, off, dtype=op.dtype(), shape=shape)


@rule("ReverseSequence")
def _reverse(op: Operator) -> Result:
    x, lengths = op[0], op[1]
    time, batch = op.attr("time_axis", 0), op.attr("batch_axis", 1)

    def place(which: int) -> Callable[[Ranges, Index], Expr]:
        return lambda ranges, index: index[which]

    at = Position(x.shape, "int64", place(time))
    length = moved(cast(lengths, "int64"), x.shape, lambda reader, index: (index[batch],))
    source = compute("tl.where({0} < {1}, {1} - 1 - {0}, {0})", at, length, dtype="int64")

    def where(reader: Reader, index: Index) -> Index:
        return tuple(reader.element(source, index, x.shape[time]) if n == time else i for n, i in enumerate(index))

    return moved(x, x.shape, where, source)


@rule("Resize", "Upsample")
def _resize(op: Operator) -> Result:
    x, shape = op[0], op.shape()
    old = op.node.op_type == "Upsample"
    mode, way = op.attr("mode", "nearest"), op.attr("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear") or op.attr("antialias", 0):
        raise Unfit(f"{mode} interpolation" + (" with a filter" if op.attr("antialias", 0) else ""))
    scales = op.constant(1 if old else 2)
    sizes = None if old else op.get(3)
    axes = [a % len(shape) for a in op.attr("axes") or range(len(shape))]
    if scales is not None and scales.size == 0:
        scales = None
    if old or op.opset < 11:
        way = "asymmetric"
    for at, axis in enumerate(axes):
        before, after = x.shape[axis], shape[axis]
        given = float(scales.reshape(-1)[at]) if scales is not None and sizes is None else None
        if before == after and given in (None, 1.0):
            continue
        if given is None and not (before.is_Integer and after.is_Integer):
            raise Unfit("sizes are not known")
        scale = given if given is not None else int(after) / int(before)
        whole = given is not None and given == int(given) and given >= 1
        target = (*x.shape[:axis], after, *x.shape[axis + 1 :])
        rounding = "floor" if old or op.opset < 11 else op.attr("nearest_mode", "round_prefer_floor")
        if mode == "nearest" and whole and _plain(way, rounding, int(scale)):
            step = sympy.Integer(int(scale))
            x = _along(x, axis, target, lambda ranges, i, step=step: ranges.quotient(i, step))  # type: ignore[misc]
        elif mode == "nearest":
            if not (before.is_Integer and after.is_Integer):
                raise Unfit("sizes are not known")
            x = _nearest(x, axis, target, scale, way, rounding)
        else:
            x = _linear(x, axis, target, scale, way)
    return cast(x, op.dtype())


def _plain(way: str, rounding: str, scale: int) -> bool:
    """Whether a nearest element is simply ``floor(i / scale)``."""
    place = np.arange(4 * scale, dtype=np.float64)
    source = place / scale if way == "asymmetric" else (place + 0.5) / scale - 0.5
    if way not in ("asymmetric", "half_pixel", "pytorch_half_pixel") or rounding not in _ROUNDING:
        return False
    found = np.clip(_ROUNDING[rounding](source), 0, None)
    return bool((found == place // scale).all())


_ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # type: ignore[type-arg]
    "round_prefer_floor": lambda v: np.ceil(v - 0.5), "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    "floor": np.floor, "ceil": np.ceil,
}  # fmt: skip


def _nearest(x: Array, axis: int, shape: Index, scale: float, way: str, rounding: str) -> Array:
    before, after = int(x.shape[axis]), int(shape[axis])
    place = np.arange(after, dtype=np.float64)
    if way == "asymmetric":
        source = place / scale
    elif way == "align_corners":
        source = place * (before - 1) / max(after - 1, 1)
    elif way in ("half_pixel", "pytorch_half_pixel"):
        source = (place + 0.5) / scale - 0.5
        if way == "pytorch_half_pixel" and after == 1:
            source = np.zeros(1)
    else:
        raise Unfit(f"coordinates {way}")
    chosen = np.clip(_ROUNDING[rounding](source), 0, before - 1).astype(np.int64)
    if after % before == 0 and (chosen == np.arange(after) // (after // before)).all():
        step = sympy.Integer(after // before)
        return _along(x, axis, shape, lambda ranges, i: ranges.quotient(i, step))
    # In whole numbers where every place is floor(i · before / after), which rounding by floats would not keep.
    if (chosen == np.arange(after) * before // after).all():
        up, down = sympy.Integer(before), sympy.Integer(after)
        return _along(x, axis, shape, lambda ranges, i: ranges.quotient(i * up, down))
    return _looked_up(x, axis, shape, [int(n) for n in chosen])


def _linear(x: Array, axis: int, shape: Index, scale: float, way: str) -> Array:
    """Two neighbours, weighted by how near they are."""
    if x.dtype == "float64":
        raise Unfit("float64: places are computed in float32")
    size, after = x.shape[axis], shape[axis]
    place = Position(shape, "int64", lambda ranges, index: index[axis])
    at = compute("{0}.to(tl.float32)", place, dtype="float32")
    if way == "align_corners":
        if not (size.is_Integer and after.is_Integer):
            raise Unfit("sizes are not known")
        step = number((int(size) - 1) / max(int(after) - 1, 1), "float32")
        source: Array = compute("{0} * {1}", at, step)
    elif way == "asymmetric":
        source = compute("{0} * {1}", at, number(1.0 / scale, "float32"))
    elif way in ("half_pixel", "pytorch_half_pixel"):
        source = compute("({0} + 0.5) * {1} - 0.5", at, number(1.0 / scale, "float32"))
        if way == "pytorch_half_pixel" and after == 1:
            source = compute("{0} * 0.0", at)
    else:
        raise Unfit(f"coordinates {way}")
    last = Position((), "int64", lambda ranges, index: size - 1)
    low = compute("tl.minimum(tl.maximum(tl.floor({0}).to(tl.int64), 0), {1})", source, last, dtype="int64")
    high = compute("tl.minimum({0} + 1, {1})", low, last, dtype="int64")
    share = compute("tl.minimum(tl.maximum({0} - {1}.to(tl.float32), 0.0), 1.0)", source, low, dtype="float32")

    def side(which: Array) -> Array:
        def where(reader: Reader, index: Index) -> Index:
            return tuple(reader.element(which, index, size) if n == axis else i for n, i in enumerate(index))

        return moved(x, shape, where, which)

    return compute("{0} * (1.0 - {2}) + {1} * {2}", side(low), side(high), share, dtype=x.dtype, shape=shape)


@rule("ConstantOfShape")
def _of_shape(op: Operator) -> Result:
    given = op.attr("value")
    value = 0.0 if given is None else given.numpy().reshape(-1)[0].item()
    dtype = op.dtype()
    return expanded(number(_value(value, dtype), dtype), op.shape())


@rule("Range")
def _range(op: Operator) -> Result:
    start, step = op.expressions("start", 0), op.expressions("delta", 2)
    if not start or not step or op.dtype() in FLOATS:
        raise Unfit("numbers that are no sizes")
    return Position(op.shape(), op.dtype(), lambda ranges, index: sympy.expand(start[0] + index[0] * step[0]))


@rule("EyeLike")
def _eye(op: Operator) -> Result:
    k, dtype = op.attr("k", 0), op.dtype()
    difference = Position(op.shape(), "int32", lambda ranges, index: index[1] - index[0])
    one, zero = (number(_value(v, dtype), dtype) for v in (1.0, 0.0))
    return compute(f"tl.where({{0}} == {k}, {{1}}, {{2}})", difference, one, zero, dtype=dtype, shape=op.shape())


@rule("AveragePool", "MaxPool")
def _pool(op: Operator) -> Result:
    """Windows, one tap after the other."""
    x, kernel = op.wide(), op.attr("kernel_shape")
    count, maximum = len(kernel), op.node.op_type == "MaxPool"
    taps = int(np.prod(kernel))
    if taps > 49:
        raise Unfit(f"windows of {taps} elements")
    if op.attr("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID") or op.attr("ceil_mode", 0):
        raise Unfit("padding that follows from sizes")
    if len(op.node.outputs) > 1 or x.dtype not in FLOATS:
        raise Unfit("places of maxima, or integers")
    strides, dilations = op.attr("strides", [1] * count), op.attr("dilations", [1] * count)
    pads = op.attr("pads", [0] * 2 * count) if op.attr("auto_pad", "NOTSET") != "VALID" else [0] * 2 * count
    shape = op.shape()
    least = number(float("-inf") if maximum else 0.0, x.dtype)
    total: Array | None = None
    present: Array | None = None
    for tap in np.ndindex(*kernel):
        at = [t * d - p for t, d, p in zip(tap, dilations, pads, strict=False)]

        def places(index: Index, at: list[int] = at) -> list[Expr]:
            return [sympy.expand(index[2 + n] * strides[n] + at[n]) for n in range(count)]

        inner = moved(x, shape, lambda reader, index, places=places: (*index[:2], *places(index)))  # type: ignore[misc]
        if not any(pads):
            here: Array = inner
        else:

            def bounds(index: Index, places: Callable[[Index], list[Expr]] = places) -> list[Bound]:
                return [Bound(p, ZERO, x.shape[2 + n]) for n, p in enumerate(places(index))]

            here = Choice(shape, x.dtype, bounds, inner, least)
            if not maximum and not op.attr("count_include_pad", 0):
                one, zero = number(1.0, "float32"), number(0.0, "float32")
                there = Choice(shape, "float32", bounds, expanded(one, shape), zero)
                present = there if present is None else compute("{0} + {1}", present, there)
        code = "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)" if maximum else "{0} + {1}"
        total = here if total is None else compute(code, total, here, dtype=x.dtype, shape=shape)
    assert total is not None
    if not maximum:
        total = (
            compute("{0} * {1}", total, number(1.0 / taps, x.dtype), shape=shape)
            if present is None
            else compute("{0} / {1}", total, present, shape=shape)
        )
    return cast(total, op.dtype())
