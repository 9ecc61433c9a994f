"""Shapes of reductions, softmax and normalizations."""

from __future__ import annotations

from ..symbolic import UNKNOWN, Dims
from .node_view import DataType, Typed, View, broadcast, normalize, rule

REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
).split()


def reduced(dims: Dims | None, axes: list[int] | None, keep: bool, noop: bool = False) -> Dims | None:
    """The shape after reducing ``axes`` (None or empty: all, or none if ``noop``)."""
    if dims is None:
        return None
    if not axes:
        if noop:
            return dims
        axes = list(range(len(dims)))
    gone = {normalize(a, len(dims)) for a in axes}
    if keep:
        return tuple(1 if i in gone else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


@rule(*REDUCTIONS)
def _reduce(view: View) -> list[Typed]:
    axes, given = view.axes(1)
    keep = bool(view.attr("keepdims", 1))
    dims = view.dims(0)
    if not given:
        # Which axes go is decided at run time; with keepdims the rank stays.
        return [(view.dtype(0), (UNKNOWN,) * len(dims) if keep and dims is not None else None)]
    return [(view.dtype(0), reduced(dims, axes, keep, bool(view.attr("noop_with_empty_axes", 0))))]


@rule("ArgMax", "ArgMin")
def _arg(view: View) -> list[Typed]:
    return [(DataType.INT64, reduced(view.dims(0), [view.attr("axis", 0)], bool(view.attr("keepdims", 1))))]


@rule("Softmax")
def _softmax(view: View) -> list[Typed]:
    return [(view.dtype(0), view.dims(0))]


@rule("LayerNormalization")
@rule("SimplifiedLayerNormalization")
def _layer_normalization(view: View) -> list[Typed]:
    dims = view.dims(0)
    statistics: Dims | None = None
    if dims is not None:
        axis = normalize(view.attr("axis", -1), len(dims))
        statistics = dims[:axis] + (1,) * (len(dims) - axis)
    stash = DataType(view.attr("stash_type", 1))
    return [(view.dtype(0), dims), (stash, statistics), (stash, statistics)]


@rule("RMSNormalization")
def _rms_normalization(view: View) -> list[Typed]:
    # The scale may have the type that the result is to have.
    dtype = view.dtype(1) if view.dtype(1) is not None else view.dtype(0)
    return [(dtype, view.dims(0))]


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def _skip_normalization(view: View) -> list[Typed]:
    dims = view.dims(0)
    statistics = None if dims is None else (*dims[:-1], 1)
    return [
        (view.dtype(0), dims),
        (DataType.FLOAT, statistics),
        (DataType.FLOAT, statistics),
        (view.dtype(0), broadcast(dims, view.dims(1))),
    ]
