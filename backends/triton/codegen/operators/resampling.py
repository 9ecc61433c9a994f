"""Operators that read windows or places between elements: resizing and pools."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import sympy

from ..arrays import FLOATS, Array, Bound, Choice, Place, Position, Unfit, cast, compute, expanded, moved, number
from ..indexing import ZERO, Expr, Index
from .movement import along, looked_up
from .registry import Operator, Result, rule


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
            x = along(x, axis, target, lambda ranges, i, step=step: ranges.quotient(i, step))  # type: ignore[misc]
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


_ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
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
        return along(x, axis, shape, lambda ranges, i: ranges.quotient(i, step))
    # In whole numbers where every place is floor(i · before / after), which rounding by floats would not keep.
    if (chosen == np.arange(after) * before // after).all():
        up, down = sympy.Integer(before), sympy.Integer(after)
        return along(x, axis, shape, lambda ranges, i: ranges.quotient(i * up, down))
    return looked_up(x, axis, shape, [int(n) for n in chosen])


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
        def where(reader: Place, index: Index) -> Index:
            return tuple(reader.element(which, index, size) if n == axis else i for n, i in enumerate(index))

        return moved(x, shape, where, which)

    return compute("{0} * (1.0 - {2}) + {1} * {2}", side(low), side(high), share, dtype=x.dtype, shape=shape)


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
