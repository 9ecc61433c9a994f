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
    Place,
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
from .registry import Operator, Result, rule

_Where: TypeAlias = "Callable[[Place, Index], Index]"


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

    def where(reader: Place, index: Index) -> Index:
        return tuple(reader.ranges.remainder(i, size) for i, size in zip(index, x.shape, strict=True))

    return moved(x, op.shape(), where)


def along(x: Array, axis: int, shape: Index, place: Callable[[Ranges, Expr], Expr]) -> Array:
    """``x`` read at another place along one axis."""

    def where(reader: Place, index: Index) -> Index:
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
            x = expanded(x, x.shape) if sizes == x.shape else along(x, axis, sizes, lambda ranges, i: i)
            continue
        x = along(x, axis, sizes, lambda ranges, i, first=first, step=step: sympy.expand(first + i * step))  # type: ignore[misc]
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
        parts.append(along(x, axis, shape, lambda ranges, i, offset=offset: i + offset))  # type: ignore[misc]
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
        here = along(parts[n], axis, shape, lambda ranges, i, begin=begin: i - begin)  # type: ignore[misc]
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

    def where(reader: Place, index: Index) -> Index:
        chosen = reader.element(indices, index[axis : axis + rank], x.shape[axis])
        return (*index[:axis], chosen, *index[axis + rank :])

    return moved(x, shape, where, indices)


@rule("GatherElements")
def _gather_elements(op: Operator) -> Result:
    x = op[0]
    axis = op.axis(0, len(x.shape))
    indices = whole_index(op[1], x.shape[axis])

    def where(reader: Place, index: Index) -> Index:
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

    def where(reader: Place, index: Index) -> Index:
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
            inner = along(x, axis, after, lambda ranges, i, begin=begin: i - begin)  # type: ignore[misc]
            bounds = lambda index, axis=axis, begin=begin, size=size: [Bound(index[axis] - begin, ZERO, size)]  # noqa: E731
            x = Choice(after, x.dtype, bounds, inner, fill)
        elif mode == "wrap" and size.is_Integer and begin.is_Integer:
            shift = (-int(begin)) % max(int(size), 1)
            x = along(x, axis, after, lambda ranges, i, s=shift, size=size: ranges.remainder(i + s, size))  # type: ignore[misc]
        else:
            x = looked_up(x, axis, after, _padded_places(mode, size, begin, end))
    return x


def _value(value: float, dtype: str) -> float | int | bool:
    return float(value) if dtype in FLOATS else bool(value) if dtype == "int1" else int(value)


def _padded_places(mode: str, size: Expr, begin: Expr, end: Expr) -> list[int]:
    if not (size.is_Integer and begin.is_Integer and end.is_Integer) or begin < 0 or end < 0:
        raise Unfit(f"{mode} padding of a size that is not known")
    return [int(n) for n in np.pad(np.arange(int(size)), (int(begin), int(end)), mode)]  # type: ignore[call-overload]


def looked_up(x: Array, axis: int, shape: Index, places: Sequence[int]) -> Array:
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
        here = along(x, axis, shape, lambda ranges, i, b=begin, f=first, s=step: sympy.expand(f + (i - b) * s))  # type: ignore[misc]
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
        inner = along(x, axis, sizes, lambda ranges, i, begin=begin: i - begin)  # type: ignore[misc]
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

    def where(reader: Place, index: Index) -> Index:
        return tuple(reader.element(source, index, x.shape[time]) if n == time else i for n, i in enumerate(index))

    return moved(x, x.shape, where, source)


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
