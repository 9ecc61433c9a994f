"""Small float products beside a quantized one, whose results are added to its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir

from ...ir.graph import attribute, is_op, rank
from ...ir.rewrite import Editor
from .methods.rtn import Array

ORIGINAL = "burnish.original"
"""Key of ``Node.meta`` of a ``DequantizeLinear``: the :class:`~.targets.Weight`'s tensor and layout before rounding."""
LEVELS = "burnish.levels"
"""Key of its number of codes."""


def add(edit: Editor, node: onnx_ir.Node, make: Callable[[onnx_ir.Value], onnx_ir.Value]) -> None:
    """Add ``make(x)`` to what a ``MatMul`` or ``Gemm`` makes of x.

    Args:
        edit: of the main graph.
        node: the product.
        make: inserts the operators and returns their result, of the shape of the product's.
    """
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    nodes = list(edit.graph.graph)
    at = nodes.index(node) + 1
    edit.at(nodes[at] if at < len(nodes) else None, [node])
    more = make(x)
    if is_op(node, "Gemm") and (alpha := float(attribute(node, "alpha", 1.0))) != 1.0:
        factor = edit.initializer(np.asarray(alpha, (x.dtype or onnx_ir.DataType.FLOAT).numpy()), "factor")
        more = edit.op("Mul", [more, factor])
    total = edit.op("Add", [out, more], dtype=out.dtype, shape=out.shape, hint=f"{node.name or 'product'}.total")
    edit.replace(out, total)


def columns(edit: Editor, node: onnx_ir.Node, which: Array, weights: Array) -> None:
    """Multiply some input channels by float weights, stored in 16 bits; the session widens them once, when it is made.

    Args:
        edit: of the main graph.
        node: the product.
        which: int64 ``[count]``.
        weights: ``[n, count]``, of a type that :func:`stored` gives.
    """

    def make(x: onnx_ir.Value) -> onnx_ir.Value:
        some = edit.op("Gather", [x, edit.ints([int(c) for c in which], "columns")], {"axis": -1})
        value = edit.initializer(np.ascontiguousarray(weights.T), f"{node.name or 'product'}.columns")
        if value.dtype != x.dtype and x.dtype is not None:
            value = edit.op("Cast", [value], {"to": int(x.dtype)})
        return edit.op("MatMul", [some, value])

    add(edit, node, make)


def stored(weights: Array, dtype: onnx_ir.DataType) -> Array:
    """Kept weights as they are stored: float16 where the product has float32 and none is too large for it."""
    small = dtype == onnx_ir.DataType.FLOAT and np.abs(weights).max(initial=0) < np.finfo(np.float16).max
    return weights.astype(np.float16 if small else dtype.numpy())


def offsets(
    edit: Editor,
    weights: Sequence[tuple[Sequence[onnx_ir.Node], onnx_ir.TensorProtocol]],
    order: Mapping[onnx_ir.Node, int],
) -> None:
    """Multiply the sums of the inputs of each group by its offsets; products of one input share the sums.

    Args:
        edit: of the main graph.
        weights: products by each weight, and its offsets ``[groups, n]``.
        order: position of each node in the graph.
    """
    if not weights:
        return
    last = edit.ints([-1], "last_axis")
    factors = [(edit.initializer(tensor, f"{nodes[0].name or 'product'}.offsets"), nodes) for nodes, tensor in weights]
    sums: dict[tuple[onnx_ir.Value, int], onnx_ir.Value] = {}
    shapes: dict[tuple[int, ...], onnx_ir.Value] = {}
    products = sorted(((node, factor) for factor, nodes in factors for node in nodes), key=lambda pair: order[pair[0]])
    for node, factor in products:
        x, groups = node.inputs[0], factor.shape.numpy()[0] if factor.shape is not None else 0
        assert x is not None
        if (x, groups) not in sums:
            edit.at(node, [node])
            shape = (*[0] * ((rank(x) or 1) - 1), groups, -1)
            if shape not in shapes:
                shapes[shape] = edit.ints(shape, "groups")
            parts = edit.op("Reshape", [x, shapes[shape]])
            sums[x, groups] = edit.op(
                "ReduceSum", [parts, last], {"keepdims": 0}, hint=f"{x.name or 'input'}.sums"
            )  # fmt: skip
        add(edit, node, partial(_times, edit, sums[x, groups], factor))


def _times(edit: Editor, sums: onnx_ir.Value, factor: onnx_ir.Value, _: onnx_ir.Value) -> onnx_ir.Value:
    return edit.op("MatMul", [sums, factor])


def low_rank(edit: Editor, node: onnx_ir.Node, first: Array, second: Array) -> None:
    """Multiply by ``first`` [k, rank] and ``second`` [rank, n]."""

    def make(x: onnx_ir.Value) -> onnx_ir.Value:
        name = node.name or "product"
        narrow = edit.op("MatMul", [x, edit.initializer(first, f"{name}.first")])
        return edit.op("MatMul", [narrow, edit.initializer(second, f"{name}.second")])

    add(edit, node, make)
