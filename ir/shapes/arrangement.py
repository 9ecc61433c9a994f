"""Shapes of operators that only arrange elements anew: reshape, transpose, squeeze and the like."""

from __future__ import annotations

from collections.abc import Sequence

from ..symbolic import UNKNOWN, Dim, Dims, exact_div, known, mul, product
from .node_view import DataType, ShapeError, Typed, View, normalize, rule, show


@rule("Reshape")
def _reshape(view: View) -> list[Typed] | None:
    source = view.dims(0)
    target = view.attr("shape") if view.input(1) is None else view.sizes(1)
    if target is None:
        return [(view.dtype(0), None)]
    return [(view.dtype(0), reshaped(source, target, bool(view.attr("allowzero", 0))))]


def reshaped(source: Dims | None, target: Sequence[Dim], allowzero: bool = False) -> Dims:
    """The shape that ``Reshape`` gives; raises ShapeError if the number of elements would change."""
    result: list[Dim] = []
    open_at: int | None = None
    for i, size in enumerate(target):
        if isinstance(size, int) and size == 0 and not allowzero:
            if source is None:
                size = UNKNOWN
            elif i < len(source):
                size = source[i]
            else:
                raise ShapeError(f"Reshape copies dimension {i} of shape {show(source)}")
        elif isinstance(size, int) and size == -1:
            if open_at is not None:
                raise ShapeError(f"Reshape has two free dimensions: {show(target)}")
            open_at, size = i, UNKNOWN
        result.append(size)
    if source is None:
        return tuple(result)
    missing = [i for i, size in enumerate(result) if not known(size)]
    if all(isinstance(d, int) for d in source) and not missing:
        have, want = product(source), product(result)
        if isinstance(want, int) and have != want:
            raise ShapeError(f"Reshape of {show(source)} to {show(target)} changes the number of elements")
    if len(missing) == 1:
        result[missing[0]] = _remaining(source, [s for i, s in enumerate(result) if i != missing[0]])
        if all(isinstance(d, int) for d in source) and all(isinstance(s, int) for s in result[: missing[0]]):
            size = result[missing[0]]
            others = product(s for i, s in enumerate(result) if i != missing[0])
            if not known(size) and isinstance(others, int) and others != 0:
                raise ShapeError(f"Reshape of {show(source)} to {show(target)} changes the number of elements")
    return tuple(result)


def _remaining(source: Dims, others: Sequence[Dim]) -> Dim:
    """The elements of ``source`` divided by the other dimensions; common factors are dropped before SymPy sees them."""
    if any(not known(d) for d in others):
        return UNKNOWN
    left, right = list(source), []
    for dim in others:
        if dim in left and dim != 0:
            left.remove(dim)
        else:
            right.append(dim)
    # Unknown dimensions cancel too, but only against themselves, and then they are not among ``others``.
    return exact_div(product(left), product(right)) if right else product(left)


@rule("Flatten")
def _flatten(view: View) -> list[Typed]:
    dims = view.dims(0)
    if dims is None:
        return [(view.dtype(0), (UNKNOWN, UNKNOWN))]
    axis = view.attr("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return [(view.dtype(0), (product(dims[:axis]), product(dims[axis:])))]


@rule("Transpose")
def _transpose(view: View) -> list[Typed]:
    dims = view.dims(0)
    if dims is None:
        return [(view.dtype(0), None)]
    perm = view.attr("perm")
    if perm is None:
        return [(view.dtype(0), dims[::-1])]
    if sorted(perm) != list(range(len(dims))):
        raise ShapeError(f"Transpose by {perm} of a tensor of {len(dims)} dimensions")
    return [(view.dtype(0), tuple(dims[p] for p in perm))]


@rule("Unsqueeze")
def _unsqueeze(view: View) -> list[Typed]:
    dims = view.dims(0)
    axes, _ = view.axes(1)
    if dims is None or axes is None:
        return [(view.dtype(0), None)]
    rank = len(dims) + len(axes)
    places = {normalize(a, rank) for a in axes}
    if len(places) != len(axes):
        raise ShapeError(f"Unsqueeze names an axis twice: {axes}")
    rest = iter(dims)
    return [(view.dtype(0), tuple(1 if i in places else next(rest) for i in range(rank)))]


@rule("Squeeze")
def _squeeze(view: View) -> list[Typed]:
    dims = view.dims(0)
    axes, given = view.axes(1)
    if dims is None or not given:
        return [(view.dtype(0), None)]
    if axes is None:
        if any(not isinstance(d, int) for d in dims):
            return [(view.dtype(0), None)]
        return [(view.dtype(0), tuple(d for d in dims if d != 1))]
    gone = {normalize(a, len(dims)) for a in axes}
    for axis in gone:
        size = dims[axis]
        if isinstance(size, int) and size != 1:
            raise ShapeError(f"Squeeze of axis {axis}, which has size {size}")
    return [(view.dtype(0), tuple(d for i, d in enumerate(dims) if i not in gone))]


@rule("Shape")
def _shape(view: View) -> list[Typed]:
    dims = view.dims(0)
    if dims is None:
        return [(DataType.INT64, (UNKNOWN,))]
    return [(DataType.INT64, (len(dims[view.attr("start", 0) : view.attr("end")]),))]


@rule("Size")
def _size(view: View) -> list[Typed]:
    return [(DataType.INT64, ())]


@rule("DepthToSpace")
def _depth_to_space(view: View) -> list[Typed]:
    dims, block = view.dims(0), view.attr("blocksize")
    if dims is None or len(dims) != 4:
        return [(view.dtype(0), (UNKNOWN,) * 4)]
    return [(view.dtype(0), (dims[0], exact_div(dims[1], block * block), mul(dims[2], block), mul(dims[3], block)))]


@rule("SpaceToDepth")
def _space_to_depth(view: View) -> list[Typed]:
    dims, block = view.dims(0), view.attr("blocksize")
    if dims is None or len(dims) != 4:
        return [(view.dtype(0), (UNKNOWN,) * 4)]
    out = (dims[0], mul(dims[1], block * block), exact_div(dims[2], block), exact_div(dims[3], block))
    return [(view.dtype(0), out)]
