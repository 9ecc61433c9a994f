"""What a write through a view does to what is viewed: one inverse per view operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from onnx_ir import DataType, Value

from .builder import Builder, dims, rank
from .expressions import Size

F = TypeVar("F", bound=Callable[..., Value])
Inverse: TypeAlias = Callable[..., Value]
"""``inverse(builder, base, part, meta of base, *arguments of the view)`` is ``base`` with ``part`` written into it."""

INVERSES: dict[str, Inverse] = {}


def _inverse(*overloads: str) -> Callable[[F], F]:
    def register(function: F) -> F:
        INVERSES.update(dict.fromkeys(overloads, function))
        return function

    return register


@_inverse(
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
    "aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.default", "aten.squeeze.dims", "aten.unflatten.int",
    "aten.view_as.default",
)  # fmt: skip
def _reshape(b: Builder, base: Value, part: Value, meta: torch.Tensor, *_: Any) -> Value:
    return b.op("Reshape", part, b.sizes(dims(base)), shape=dims(base), allowzero=1)


@_inverse("aten.detach.default", "aten.detach_.default", "aten.alias.default", "aten.contiguous.default",
          "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten.type_as.default")  # fmt: skip
def _same(b: Builder, base: Value, part: Value, meta: torch.Tensor, *_: Any) -> Value:
    return part


@_inverse("aten.transpose.int")
def _transpose(b: Builder, base: Value, part: Value, meta: torch.Tensor, dim0: int, dim1: int) -> Value:
    perm = list(range(rank(base)))
    perm[dim0], perm[dim1] = perm[dim1], perm[dim0]
    return b.op("Transpose", part, shape=dims(base), perm=perm)


@_inverse("aten.t.default", "aten.numpy_T.default")
def _t(b: Builder, base: Value, part: Value, meta: torch.Tensor) -> Value:
    return b.op("Transpose", part, shape=dims(base))


@_inverse("aten.permute.default")
def _permute(b: Builder, base: Value, part: Value, meta: torch.Tensor, axes: list[int]) -> Value:
    axes = [axis % rank(base) for axis in axes]
    return b.op("Transpose", part, shape=dims(base), perm=[axes.index(i) for i in range(len(axes))])


@_inverse("aten.select.int")
def select_scatter(b: Builder, base: Value, part: Value, meta: torch.Tensor, dim: int, index: Size) -> Value:
    """``base`` with ``part`` at one index of an axis."""
    axis = dim % rank(base)
    shape = list(dims(base))
    shape[axis] = 1
    part = b.op("Unsqueeze", part, b.ints([axis]), shape=shape)
    end: Size | None = None if isinstance(index, int) and index == -1 else index + 1
    return slice_scatter(b, base, part, meta, axis, index, end)


@_inverse("aten.slice.Tensor")
def slice_scatter(
    b: Builder,
    base: Value,
    part: Value,
    meta: torch.Tensor,
    dim: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> Value:
    """``base`` with ``part`` at a slice of an axis."""
    axis = dim % rank(base)
    size = meta.shape[axis]
    whole = (start is None or _is(start, 0)) and step == 1 and (end is None or _reaches(end, size))
    if whole:
        return part
    # The indices of the slice along the axis, then one scatter of rows with that axis first.
    everything = b.op(
        "Range", b.scalar(0, DataType.INT64), b.op("Squeeze", b.size(b.dimensions.dim(size)), shape=[]),
        b.scalar(1, DataType.INT64), shape=[b.dimensions.dim(size)],
    )  # fmt: skip
    limit = np.iinfo(np.int64).max if end is None else end
    indices = b.op(
        "Slice", everything, b.index(0 if start is None else start), b.index(limit), b.ints([0]), b.ints([step]),
        shape=[dims(part)[axis]],
    )  # fmt: skip
    perm = [axis, *(i for i in range(rank(base)) if i != axis)]
    back = [perm.index(i) for i in range(len(perm))]
    if axis:
        base_t = b.op("Transpose", base, shape=[dims(base)[i] for i in perm], perm=perm)
        part = b.op("Transpose", part, shape=[dims(part)[i] for i in perm], perm=perm)
    else:
        base_t = base
    rows = b.op("Unsqueeze", indices, b.ints([1]), shape=[*dims(indices), 1])
    result = b.op("ScatterND", base_t, rows, part, shape=dims(base_t))
    return b.op("Transpose", result, shape=dims(base), perm=back) if axis else result


def _is(size: Size, number: int) -> bool:
    return isinstance(size, int) and size == number


def _reaches(end: Size, size: Size) -> bool:
    """Whether a slice's end is known to be at or past the end of an axis."""
    if isinstance(end, int):
        return end == np.iinfo(np.int64).max or (isinstance(size, int) and end >= size)
    return isinstance(size, torch.SymInt) and end.node.expr == size.node.expr
