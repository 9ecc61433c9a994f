"""Shapes: views, permutations, joins, splits, slices, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir import DataType, Value

from ....ir.symbolic import Dim
from ..builder import Builder, dims, rank
from ..expressions import Size
from ..registry import rule

END = np.iinfo(np.int64).max


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are known to be the same."""
    if a is b:
        return True
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def reshape(b: Builder, x: Value, target: Sequence[Dim]) -> Value:
    """``x`` in another shape, with 0 and −1 in place of shape arithmetic wherever they can say it."""
    source = dims(x)
    if len(source) == len(target) and all(map(same_dim, source, target)):
        return x
    spec: list[Dim] = []
    for i, dim in enumerate(target):
        copied = not isinstance(dim, int) and i < len(source) and same_dim(source[i], dim)
        spec.append(0 if copied else dim)
    symbolic = [i for i, dim in enumerate(spec) if not isinstance(dim, int)]
    empty = any(isinstance(dim, int) and dim == 0 for dim in target)
    if empty:
        # Here a 0 is a size, and −1 would be ambiguous.
        return b.op("Reshape", x, b.sizes(target), shape=target, allowzero=1)
    if len(symbolic) == 1:
        spec[symbolic[0]] = -1
    return b.op("Reshape", x, b.sizes(spec), shape=target)


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
      "aten.unflatten.int", "aten.view_as.default", "aten.reshape_as.default", "aten._reshape_alias.default",
      "aten.ravel.default")  # fmt: skip
def view(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    return reshape(b, x, b.shape)


@rule("aten.unsqueeze.default")
def unsqueeze(b: Builder, x: Value, dim: int) -> Value:
    return b.op("Unsqueeze", x, b.ints([dim % (rank(x) + 1)]), shape=b.shape)


@rule("aten.squeeze.dim", "aten.squeeze.default", "aten.squeeze.dims")
def squeeze(b: Builder, x: Value, dim: int | list[int] | None = None) -> Value:
    wanted = range(rank(x)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = [axis % rank(x) for axis in wanted if rank(x)]
    axes = [axis for axis in axes if dims(x)[axis] == 1]
    return b.op("Squeeze", x, b.ints(axes), shape=b.shape) if axes else x


def transpose(b: Builder, x: Value, perm: Sequence[int]) -> Value:
    """``x`` with its axes permuted."""
    if list(perm) == list(range(rank(x))):
        return x
    return b.op("Transpose", x, shape=[dims(x)[axis] for axis in perm], perm=list(perm))


@rule("aten.transpose.int", "aten.swapaxes.default")
def transpose_int(b: Builder, x: Value, dim0: int, dim1: int) -> Value:
    perm = list(range(rank(x)))
    if perm:
        perm[dim0], perm[dim1] = perm[dim1], perm[dim0]
    return transpose(b, x, perm)


@rule("aten.t.default", "aten.numpy_T.default")
def t(b: Builder, x: Value) -> Value:
    return transpose(b, x, list(range(rank(x)))[::-1])


@rule("aten.mT.default", "aten.adjoint.default")
def matrix_t(b: Builder, x: Value) -> Value:
    return transpose_int(b, x, -2, -1)


@rule("aten.permute.default")
def permute(b: Builder, x: Value, axes: list[int]) -> Value:
    return transpose(b, x, [axis % rank(x) for axis in axes])


@rule("aten.movedim.int", "aten.movedim.intlist")
def movedim(b: Builder, x: Value, source: int | list[int], destination: int | list[int]) -> Value:
    sources = [source] if isinstance(source, int) else source
    targets = [destination] if isinstance(destination, int) else destination
    pairs = {to % rank(x): axis % rank(x) for axis, to in zip(sources, targets, strict=True)}
    rest = iter(axis for axis in range(rank(x)) if axis not in pairs.values())
    return transpose(b, x, [pairs[i] if i in pairs else next(rest) for i in range(rank(x))])


@rule("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    return expand_to(b, x, b.shape)


def expand_to(b: Builder, x: Value, target: Sequence[Dim]) -> Value:
    """``x`` broadcast to a shape; a dimension that is there already needs no size."""
    source = dims(x)
    if len(source) == len(target) and all(map(same_dim, source, target)):
        return x
    padded = (1,) * (len(target) - len(source)) + source
    spec = [1 if same_dim(have, want) else want for have, want in zip(padded, target, strict=True)]
    return b.op("Expand", x, b.sizes(spec), shape=target)


@rule("aten.broadcast_tensors.default")
def broadcast_tensors(b: Builder, tensors: list[Value]) -> list[Value]:
    return [expand_to(b, x, b.dimensions.shape(m.shape)) for x, m in zip(tensors, b.meta, strict=True)]


@rule("aten.slice.Tensor")
def slice_tensor(
    b: Builder, x: Value, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Value:
    axis = dim % rank(x)
    if all(map(same_dim, dims(x), b.shape)):
        return x
    first = b.index(0 if start is None else start)
    last = b.index(END if end is None else end)
    return b.op("Slice", x, first, last, b.ints([axis]), b.ints([step]) if step != 1 else None, shape=b.shape)


@rule("aten.narrow.default")
def narrow(b: Builder, x: Value, dim: int, start: Size, length: Size) -> Value:
    return slice_tensor(b, x, dim, start, start + length)


@rule("aten.select.int")
def select(b: Builder, x: Value, dim: int, index: Size) -> Value:
    position = b.ints(index) if isinstance(index, int) else b.scalar(index, DataType.INT64)
    return b.op("Gather", x, position, shape=b.shape, axis=dim % rank(x))


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(b: Builder, tensors: list[Value], dim: int = 0) -> Value:
    # torch lets an empty vector join tensors of any rank; a fresh cache is one.
    parts = [x for x in tensors if dims(x) != (0,)] or tensors[:1]
    parts = [b.cast(x, b.dtype) for x in parts]
    if len(parts) == 1:
        return parts[0]
    return b.op("Concat", *parts, shape=b.shape, axis=dim % rank(parts[0]))


@rule("aten.stack.default")
def stack(b: Builder, tensors: list[Value], dim: int = 0) -> Value:
    axis = dim % (rank(tensors[0]) + 1)
    parts = []
    for x in tensors:
        shape = [*dims(x)[:axis], 1, *dims(x)[axis:]]
        parts.append(b.op("Unsqueeze", b.cast(x, b.dtype), b.ints([axis]), shape=shape))
    return parts[0] if len(parts) == 1 else b.op("Concat", *parts, shape=b.shape, axis=axis)


@rule("aten.hstack.default")
def hstack(b: Builder, tensors: list[Value]) -> Value:
    return cat(b, tensors, 0 if rank(tensors[0]) == 1 else 1)


@rule("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.chunk.default",
      "aten.tensor_split.sections", "aten.tensor_split.indices")  # fmt: skip
def split(b: Builder, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    axis = dim % rank(x)
    shapes = [b.dimensions.shape(part.shape) for part in b.meta]
    if len(shapes) == 1:
        return [x]
    parts = b.ops("Split", [x, b.sizes([shape[axis] for shape in shapes])], len(shapes), {"axis": axis})
    return _typed(parts, x.dtype, shapes)


@rule("aten.unbind.int")
def unbind(b: Builder, x: Value, dim: int = 0) -> list[Value]:
    axis = dim % rank(x)
    shape = [*dims(x)[:axis], *dims(x)[axis + 1 :]]
    count = len(b.meta)
    return [b.op("Gather", x, b.ints(i), shape=shape, axis=axis) for i in range(count)]


def _typed(values: Sequence[Value], dtype: DataType | None, shapes: Sequence[Sequence[Dim]]) -> list[Value]:
    assert dtype is not None
    for value, shape in zip(values, shapes, strict=True):
        value.type, value.shape = onnx_ir.TensorType(dtype), onnx_ir.Shape(shape)
    return list(values)


@rule("aten.repeat.default", "aten.tile.default")
def repeat(b: Builder, x: Value, repeats: list[Size]) -> Value:
    counts: list[Dim] = [1] * (rank(x) - len(repeats))
    counts.extend(b.dimensions.dim(n) for n in repeats)
    if len(counts) > rank(x):
        shape = [*[1] * (len(counts) - rank(x)), *dims(x)]
        x = b.op("Unsqueeze", x, b.ints(list(range(len(counts) - rank(x)))), shape=shape)
    if all(n == 1 for n in counts):
        return x
    return b.op("Tile", x, b.sizes(counts), shape=b.shape)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(
    b: Builder, x: Value, repeats: Size, dim: int | None = None, output_size: Size | None = None
) -> Value:
    if isinstance(repeats, int) and repeats == 1 and dim is not None:
        return x
    if dim is None:
        total: Dim = 1
        x = b.op("Reshape", x, b.ints([-1]), shape=[b.dimensions.unknown()])
        dim, target = 0, b.shape
    else:
        dim, target = dim % rank(x), b.shape
    count = b.dimensions.dim(repeats)
    wide = [*dims(x)[: dim + 1], 1, *dims(x)[dim + 1 :]]
    x = b.op("Unsqueeze", x, b.ints([dim + 1]), shape=wide)
    spec: list[Dim] = [1] * len(wide)
    spec[dim + 1] = count
    wide[dim + 1] = count
    x = b.op("Expand", x, b.sizes(spec), shape=wide)
    if all(isinstance(d, int) for d in target):
        return b.op("Reshape", x, b.sizes(target), shape=target)
    # The axes before are copied, those after are numbers or follow from the target.
    after: list[Dim] = list(target[dim + 1 :])
    total = -1 if all(isinstance(d, int) for d in after) else target[dim]
    return b.op("Reshape", x, b.sizes([*[0] * dim, total, *after]), shape=target)


@rule("aten.flip.default")
def flip(b: Builder, x: Value, axes: list[int]) -> Value:
    count = len(axes)
    return b.op("Slice", x, b.ints([-1] * count), b.ints([-END] * count), b.ints([a % rank(x) for a in axes]),
                b.ints([-1] * count), shape=dims(x))  # fmt: skip


@rule("aten.roll.default")
def roll(b: Builder, x: Value, shifts: list[Size], axes: list[int] | None = None) -> Value:
    shape = dims(x)
    if not axes:
        x, axes = b.op("Reshape", x, b.ints([-1]), shape=[b.dimensions.unknown()]), [0]
    for shift, axis in zip(shifts, axes, strict=True):
        if isinstance(shift, int) and shift == 0:
            continue
        at = b.index(-shift)
        part = list(dims(x))
        part[axis] = b.dimensions.unknown()
        tail = b.op("Slice", x, at, b.ints([END]), b.ints([axis]), shape=part)
        head = b.op("Slice", x, b.ints([0]), at, b.ints([axis]), shape=part)
        x = b.op("Concat", tail, head, shape=dims(x), axis=axis)
    return x if rank(x) == len(shape) else reshape(b, x, shape)


@rule("aten.unfold.default")
def unfold(b: Builder, x: Value, dimension: int, size: int, step: int) -> Value:
    if not rank(x):
        return reshape(b, x, b.shape)
    axis = dimension % rank(x)
    count = b.shape[axis]
    end = b.op("Squeeze", b.size(count), shape=[])
    starts = b.op("Range", b.ints(0), end, b.ints(1), shape=[count])
    starts = b.op("Mul", b.op("Unsqueeze", starts, b.ints([1]), shape=[count, 1]), b.ints(step))
    index = b.op("Add", starts, b.ints(list(range(size))))
    windows = b.op("Gather", x, index, shape=[*dims(x)[:axis], count, size, *dims(x)[axis + 1 :]], axis=axis)
    perm = [i for i in range(rank(windows)) if i != axis + 1] + [axis + 1]
    return transpose(b, windows, perm)


@rule("aten.constant_pad_nd.default")
def constant_pad(b: Builder, x: Value, pad: list[Size], value: float = 0.0) -> Value:
    return pad_mode(b, x, pad, "constant", value)


@rule("aten.pad.default")
def pad_mode(b: Builder, x: Value, pad: list[Size], mode: str = "constant", value: float | None = None) -> Value:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    pairs = len(pad) // 2
    axes = [rank(x) - 1 - i for i in range(pairs)]
    amounts = [*pad[0::2], *pad[1::2]]
    if all(isinstance(n, int) and n == 0 for n in amounts):
        return x
    if mode == "circular":
        return _wrapped(b, x, pad)
    if mode != "constant" and any(isinstance(n, int) and n < 0 for n in amounts):
        x, pad = _cut(b, x, pad)
        amounts = [*pad[0::2], *pad[1::2]]
    counts = [b.index(n) for n in amounts]
    vector = (
        b.ints([int(n) for n in amounts])
        if all(isinstance(n, int) for n in amounts)
        else b.op("Concat", *counts, shape=[len(counts)], axis=0)
    )
    fill = b.scalar(value or 0, x.dtype) if mode == "constant" else None
    if x.dtype == DataType.BOOL:
        whole = b.op("Pad", b.cast(x, DataType.INT32), vector, b.scalar(int(value or 0), DataType.INT32),
                     b.ints(axes), shape=b.shape)  # fmt: skip
        return b.cast(whole, DataType.BOOL)
    return b.op("Pad", x, vector, fill, b.ints(axes), shape=b.shape, mode=modes[mode])


def _cut(b: Builder, x: Value, pad: list[Size]) -> tuple[Value, list[Size]]:
    """What negative amounts of padding take away, and the others."""
    for i in range(len(pad) // 2):
        axis = rank(x) - 1 - i
        first, last = (min(n, 0) if isinstance(n, int) else 0 for n in pad[2 * i : 2 * i + 2])
        if first or last:
            size = dims(x)[axis]
            shape = list(dims(x))
            shape[axis] = size + first + last if isinstance(size, int) else b.dimensions.unknown()
            x = b.op("Slice", x, b.ints([-first]), b.ints([last or END]), b.ints([axis]), shape=shape)
    return x, [max(n, 0) if isinstance(n, int) else n for n in pad]


def _wrapped(b: Builder, x: Value, pad: list[Size]) -> Value:
    """Padding with the other end, axis by axis; a negative amount takes away first."""
    for i in range(len(pad) // 2):
        axis = rank(x) - 1 - i
        before, after = pad[2 * i : 2 * i + 2]
        if not isinstance(before, int) or not isinstance(after, int):
            raise b.unsupported("circular padding by a size that varies")
        part, whole = list(dims(x)), list(dims(x))
        part[axis] = b.dimensions.unknown()
        size = dims(x)[axis]
        whole[axis] = size + before + after if isinstance(size, int) else b.dimensions.unknown()
        kept = x
        if before < 0 or after < 0:
            first, last = -min(before, 0), min(after, 0) or END
            kept = b.op("Slice", x, b.ints([first]), b.ints([last]), b.ints([axis]), shape=part)
        pieces = [kept]
        if before > 0:
            pieces.insert(0, b.op("Slice", kept, b.ints([-before]), b.ints([END]), b.ints([axis]), shape=part))
        if after > 0:
            pieces.append(b.op("Slice", kept, b.ints([0]), b.ints([after]), b.ints([axis]), shape=part))
        x = pieces[0] if len(pieces) == 1 else b.op("Concat", *pieces, shape=whole, axis=axis)
    return x


@rule("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")
def reflection_pad(b: Builder, x: Value, padding: list[Size]) -> Value:
    return pad_mode(b, x, padding, "reflect")


@rule("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")
def replication_pad(b: Builder, x: Value, padding: list[Size]) -> Value:
    return pad_mode(b, x, padding, "replicate")


@rule("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(b: Builder, tensors: list[Value], indexing: str = "ij") -> list[Value]:
    results = []
    count = len(tensors)
    order = list(range(count))
    if indexing == "xy" and count > 1:
        order[0], order[1] = 1, 0
    for i, (x, meta) in enumerate(zip(tensors, b.meta, strict=True)):
        shape: list[Dim] = [1] * count
        shape[order[i]] = dims(x)[0] if rank(x) else 1
        axes = [j for j in range(count) if j != order[i] or not rank(x)]
        x = b.op("Unsqueeze", x, b.ints(axes), shape=shape)
        results.append(expand_to(b, x, b.dimensions.shape(meta.shape)))
    return results


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(b: Builder, x: Value, upscale_factor: int) -> Value:
    return b.op("DepthToSpace", x, shape=b.shape, blocksize=upscale_factor, mode="CRD")


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(b: Builder, x: Value, downscale_factor: int) -> Value:
    n, channels = dims(x)[:2]
    f = downscale_factor
    out = b.shape
    parts = [n, channels, out[2], f, out[3], f]
    x = b.op("Reshape", x, b.sizes([0, channels, out[2], f, out[3], f]), shape=parts)
    x = transpose(b, x, [0, 1, 3, 5, 2, 4])
    return b.op("Reshape", x, b.sizes([0, out[1], out[2], out[3]]), shape=out)


@rule("aten.sym_size.int")
def sym_size(b: Builder, x: Value, dim: int) -> Any:
    return b.meta


@rule("aten.diff.default")
def diff(
    b: Builder, x: Value, n: int = 1, dim: int = -1, prepend: Value | None = None, append: Value | None = None
) -> Value:
    axis = dim % rank(x)
    ends = [part for part in (prepend, x, append) if part is not None]
    if len(ends) > 1:
        shape = list(dims(x))
        shape[axis] = b.dimensions.unknown()
        x = b.op("Concat", *ends, shape=shape, axis=axis)
    for _ in range(n):
        shape = list(dims(x))
        shape[axis] = b.dimensions.unknown()
        after = b.op("Slice", x, b.ints([1]), b.ints([END]), b.ints([axis]), shape=shape)
        before = b.op("Slice", x, b.ints([0]), b.ints([-1]), b.ints([axis]), shape=shape)
        x = b.op("Xor" if x.dtype == DataType.BOOL else "Sub", after, before)
    return x


@rule("aten.view_as_complex.default", "aten.view_as_real.default", "aten.complex.default", "aten.polar.default")
def complex_numbers(b: Builder, *_: Any) -> Value:
    raise b.unsupported("complex numbers have no kernels in ONNX Runtime")
