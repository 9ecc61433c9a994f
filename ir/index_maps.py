"""Index maps: which input elements an output element is made of, as SymPy expressions of its indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir
import sympy

from .graph import attribute, rank
from .shapes.contraction import matmul_dims
from .symbolic import Dims, known, product, to_expr
from .traits import Kind, reduced_axes, trait
from .values import Evaluator

Index: TypeAlias = tuple[sympy.Expr, ...]


@dataclass(frozen=True)
class IndexMap:
    """Where the elements of one output come from.

    Attributes:
        outputs: the indices of the output element: ``i0, i1, …``.
        reduced: further indices that the operator runs over and combines: ``k0, k1, …``.
        extents: how far each reduced index runs (None if unknown).
        inputs: per input the indices read; None where it is not expressible or the input is no operand (a shape, axes).
            An index that the data decide is ``x1(…)``: the element of input 1 at these indices. Concat's and Pad's
            indices may lie outside an input: the element then comes from elsewhere.
    """

    outputs: tuple[sympy.Symbol, ...]
    reduced: tuple[sympy.Symbol, ...]
    extents: tuple[sympy.Expr | None, ...]
    inputs: tuple[Index | None, ...]


_Reads: TypeAlias = "tuple[list[Index | None], list[sympy.Expr | None]] | None"
"""Indices per input, and the extents of the reduced indices."""


def index_map(node: onnx_ir.Node, output: int = 0) -> IndexMap | None:
    """The index map of one output of a node; None where it is not expressible or shapes are missing."""
    dimensions = rank(node.outputs[output])
    row = trait(node)
    if dimensions is None or row is None or node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    place = tuple(_index("i", n) for n in range(dimensions))
    rule = _MAPS.get(node.op_type)
    if rule is None and row.kind is Kind.ELEMENTWISE:
        rule = _elementwise
    elif rule is None and row.axes is not None:
        rule = _reduction if row.kind is Kind.REDUCTION else _normalization
    if rule is None:
        return None
    reads = rule(node, place, output)
    if reads is None:
        return None
    inputs, extents = reads
    reduced = tuple(_index("k", n) for n in range(len(extents)))
    return IndexMap(place, reduced, tuple(extents), tuple(inputs))


def _index(letter: str, n: int) -> sympy.Symbol:
    return sympy.Symbol(f"{letter}{n}", integer=True, nonnegative=True)


def _dims(value: onnx_ir.Value | None) -> Dims | None:
    return None if value is None or value.shape is None else value.shape.dims


def _extent(dims: Dims, axis: int) -> sympy.Expr | None:
    return to_expr(dims[axis])


def _broadcast(dims: Dims | None, place: Index) -> Index | None:
    """Where an operand of shape ``dims`` is read for the output element at ``place``."""
    if dims is None or len(dims) > len(place):
        return None
    shift = len(place) - len(dims)
    return tuple(sympy.Integer(0) if d == 1 else place[shift + n] for n, d in enumerate(dims))


def _elementwise(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    return [_broadcast(_dims(v), place) for v in node.inputs], []


def _channelwise(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    """Parameters along the channel axis (BatchNormalization, PRelu aside)."""
    return [place, *[place[1:2]] * (len(node.inputs) - 1)], []


def _first_only(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    return [place, *[None] * (len(node.inputs) - 1)], []


def _blocked(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    """Scale and zero point per tensor, per axis or per block."""
    axis = attribute(node, "axis", 1)
    block = attribute(node, "block_size", 0)
    inputs: list[Index | None] = [place]
    for value in node.inputs[1:]:
        dims = _dims(value)
        if dims is None:
            inputs.append(None)
        elif len(dims) == 0:
            inputs.append(())
        elif len(dims) == 1 and not block:
            inputs.append((sympy.Integer(0),) if dims[0] == 1 else (place[axis],))
        else:
            at = axis % len(place)
            inputs.append((*place[:at], sympy.floor(place[at] / block), *place[at + 1 :]) if block else None)
    return inputs, []


def _reduction(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    axes, dims = reduced_axes(node), _dims(node.inputs[0])
    if axes is None or dims is None:
        return None
    kept = iter(place)
    keep = len(place) == len(dims)
    index: list[sympy.Expr] = []
    extents: list[sympy.Expr | None] = []
    for n in range(len(dims)):
        if n in axes:
            index.append(_index("k", len(extents)))
            extents.append(_extent(dims, n))
            if keep:
                next(kept)
        else:
            index.append(next(kept))
    return [tuple(index), *[None] * (len(node.inputs) - 1)], extents


def _normalization(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    axes, dims = reduced_axes(node), _dims(node.inputs[0])
    if axes is None or dims is None or output:
        return None
    index = list(place)
    for n, axis in enumerate(axes):
        index[axis] = _index("k", n)
    if node.op_type == "InstanceNormalization":
        parameters: list[Index | None] = [place[1:2]] * (len(node.inputs) - 1)
    else:
        parameters = [_broadcast(_dims(v), place) for v in node.inputs[1:]]
    return [tuple(index), *parameters], [_extent(dims, axis) for axis in axes]


def _matmul(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    a, b = _dims(node.inputs[0]), _dims(node.inputs[1])
    if a is None or b is None or matmul_dims(a, b) is None:
        return None
    k = _index("k", 0)
    columns = place[-1:] if len(b) > 1 else ()
    rest = place[: len(place) - len(columns)]
    rows = rest[-1:] if len(a) > 1 else ()
    batch = rest[: len(rest) - len(rows)]
    left, right = _broadcast(a[:-2], batch), _broadcast(b[:-2], batch)
    if left is None or right is None:
        return None
    return [(*left, *rows, k), (*right, k, *columns)], [_extent(a, len(a) - 1)]


def _gemm(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    a = _dims(node.inputs[0])
    if a is None:
        return None
    k = _index("k", 0)
    over = 0 if attribute(node, "transA", 0) else 1
    left = (k, place[0]) if over == 0 else (place[0], k)
    right = (place[1], k) if attribute(node, "transB", 0) else (k, place[1])
    bias = [_broadcast(_dims(v), place) for v in node.inputs[2:]]
    return [left, right, *bias], [_extent(a, over)]


def _conv(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    x, w = _dims(node.inputs[0]), _dims(node.inputs[1])
    if x is None or w is None or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    n, groups = len(x) - 2, attribute(node, "group", 1)
    if not isinstance(w[0], int) or not isinstance(w[1], int):
        return None
    strides, dilations = attribute(node, "strides", [1] * n), attribute(node, "dilations", [1] * n)
    pads = attribute(node, "pads", [0] * 2 * n)
    channel, kernel = _index("k", 0), [_index("k", 1 + d) for d in range(n)]
    # A group of output channels reads its own group of input channels.
    source = channel if groups == 1 else channel + sympy.floor(place[1] / (w[0] // groups)) * w[1]
    spatial = [place[2 + d] * strides[d] + kernel[d] * dilations[d] - pads[d] for d in range(n)]
    reads: list[Index | None] = [(place[0], source, *spatial), (place[1], channel, *kernel)]
    if len(node.inputs) > 2:
        reads.append(place[1:2])
    return reads, [_extent(w, 1 + d) for d in range(n + 1)]


def _transpose(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    perm = attribute(node, "perm", list(reversed(range(len(place)))))
    source = [place[0]] * len(place) if place else []
    for n, axis in enumerate(perm):
        source[axis] = place[n]
    return [tuple(source)], []


def _reshape(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    """Through the row-major position of the element."""
    dims, out = _dims(node.inputs[0]), _dims(node.outputs[0])
    if dims is None or out is None or not all(map(known, (*dims, *out))):
        return None
    position: sympy.Expr = sympy.Integer(0)
    for n, index in enumerate(place):
        position += index * to_expr(product(out[n + 1 :]))
    source = []
    for n in range(len(dims)):
        stride, size = to_expr(product(dims[n + 1 :])), to_expr(dims[n])
        step = sympy.floor(position / stride) if stride != 1 else position
        source.append(step if n == 0 else sympy.Mod(step, size))
    return [tuple(source), *[None] * (len(node.inputs) - 1)], []


def _squeeze(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    """Squeeze and Unsqueeze: indices of the dimensions that are in both."""
    dims, out = _dims(node.inputs[0]), _dims(node.outputs[0])
    if dims is None or out is None:
        return None
    axes = _static_axes(node, max(len(dims), len(out)))
    rest = [None] * (len(node.inputs) - 1)
    if axes is None:
        return None
    if node.op_type == "Unsqueeze":
        return [tuple(index for n, index in enumerate(place) if n not in axes), *rest], []
    kept = iter(place)
    return [tuple(sympy.Integer(0) if n in axes else next(kept) for n in range(len(dims))), *rest], []


def _static_axes(node: onnx_ir.Node, dimensions: int) -> set[int] | None:
    axes = attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        value = Evaluator().of(node.inputs[1])
        found = None if value is None else value.constant()
        if found is None:
            return None
        axes = [int(a) for a in found.reshape(-1)]
    if axes is None:
        dims = _dims(node.inputs[0])
        axes = None if dims is None else [n for n, d in enumerate(dims) if d == 1]
    return None if axes is None else {a % dimensions for a in axes}


def _slice(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    dims = _dims(node.inputs[0])
    if dims is None:
        return None
    evaluator = Evaluator()
    starts, steps, axes = attribute(node, "starts"), attribute(node, "steps"), attribute(node, "axes")
    if len(node.inputs) > 1:
        values = [evaluator.of(node.inputs[n]) if n < len(node.inputs) else None for n in (1, 3, 4)]
        given = [n < len(node.inputs) and node.inputs[n] is not None for n in (1, 3, 4)]
        if any(g and (v is None or not v.complete) for g, v in zip(given, values, strict=True)):
            return None
        starts, axes, steps = (list(v.elements) if v is not None else None for v in values)
    if starts is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    source = list(place)
    for start, axis, step in zip(starts, axes, steps, strict=True):
        size = dims[axis]
        first = to_expr(start)
        if not isinstance(axis, int) or not isinstance(step, int) or first is None:
            return None
        if isinstance(start, int) and start < 0:
            whole = to_expr(size)
            if whole is None:
                return None
            first = sympy.Max(whole + start, 0)
        if isinstance(size, int) and first.is_Integer:
            first = sympy.Integer(min(int(first), size if step > 0 else size - 1))
        source[axis] = first + place[axis] * step
    return [tuple(source), *[None] * (len(node.inputs) - 1)], []


def _concat(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    axis = attribute(node, "axis", 1) % len(place)
    offset: sympy.Expr | None = sympy.Integer(0)
    reads: list[Index | None] = []
    for value in node.inputs:
        reads.append(None if offset is None else (*place[:axis], place[axis] - offset, *place[axis + 1 :]))
        dims = _dims(value)
        size = None if dims is None else to_expr(dims[axis])
        offset = None if offset is None or size is None else offset + size
    return reads, []


def _split(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    axis = attribute(node, "axis", 0) % len(place)
    offset: sympy.Expr = sympy.Integer(0)
    for value in node.outputs[:output]:
        dims = _dims(value)
        size = None if dims is None else to_expr(dims[axis])
        if size is None:
            return None
        offset += size
    return [(*place[:axis], place[axis] + offset, *place[axis + 1 :]), *[None] * (len(node.inputs) - 1)], []


def _expand(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    return [_broadcast(_dims(node.inputs[0]), place), None], []


def _tile(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    dims = _dims(node.inputs[0])
    if dims is None or not all(map(known, dims)):
        return None
    return [tuple(sympy.Mod(i, to_expr(d)) for i, d in zip(place, dims, strict=True)), None], []


def _gather(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    data, indices = rank(node.inputs[0]), rank(node.inputs[1])
    if data is None or indices is None:
        return None
    axis = attribute(node, "axis", 0) % data
    chosen = place[axis : axis + indices]
    return [(*place[:axis], _loaded(1, chosen), *place[axis + indices :]), chosen], []


def _gather_elements(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    axis = attribute(node, "axis", 0) % len(place)
    return [(*place[:axis], _loaded(1, place), *place[axis + 1 :]), place], []


def _loaded(which: int, index: Index) -> sympy.Expr:
    """An index that is itself data: the element of an input."""
    return sympy.Function(f"x{which}", integer=True, nonnegative=True)(*index) if index else sympy.Symbol(f"x{which}")


def _pad(node: onnx_ir.Node, place: Index, output: int) -> _Reads:
    pads = attribute(node, "pads")
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    if len(node.inputs) > 1:
        value = Evaluator().of(node.inputs[1])
        pads = None if value is None or not value.complete else list(value.elements)
    if pads is None or attribute(node, "mode", "constant") != "constant":
        return None
    return [tuple(i - to_expr(p) for i, p in zip(place, pads, strict=False)), *[None] * (len(node.inputs) - 1)], []


_MAPS: dict[str, Callable[[onnx_ir.Node, Index, int], _Reads]] = {
    "BatchNormalization": _channelwise,
    "Cast": _first_only,
    "CastLike": _first_only,
    "Clip": _elementwise,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _blocked,
    "Dropout": _first_only,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "QuantizeLinear": _blocked,
    "Reshape": _reshape,
    "RotaryEmbedding": lambda node, place, output: None,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "SwiGLU": lambda node, place, output: None,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _first_only,
    "Unsqueeze": _squeeze,
}
