"""Matrix products."""

from __future__ import annotations

from onnx_ir import DataType, Value

from ....ir.symbolic import Dim
from ..builder import Builder, Number, dims, fixed, rank
from ..dtypes import is_float
from ..registry import rule
from .operands import binary


@rule("aten.linear.default")
def linear(b: Builder, x: Value, weight: Value, bias: Value | None = None) -> Value:
    weight_t = b.op("Transpose", weight, shape=dims(weight)[::-1], perm=[1, 0])
    y = b.op("MatMul", x, weight_t, shape=b.shape)
    return y if bias is None else b.op("Add", y, bias, shape=b.shape)


def product(b: Builder, x: Value, y: Value) -> Value:
    """A matrix product with the batch dimensions of the current result."""
    return b.op("MatMul", x, y, shape=b.shape)


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default")
def matmul(b: Builder, x: Value, y: Value) -> Value:
    return product(b, x, y)


@rule("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default")
def addmm(b: Builder, bias: Value, x: Value, y: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    return _add(b, bias, product(b, x, y), beta, alpha)


@rule("aten.addbmm.default")
def addbmm(b: Builder, bias: Value, x: Value, y: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    """The products of a batch are summed."""
    products = b.op("MatMul", x, y, shape=[*dims(x)[:-1], dims(y)[-1]])
    return _add(b, bias, b.op("ReduceSum", products, b.ints([0]), shape=b.shape, keepdims=0), beta, alpha)


def _add(b: Builder, bias: Value, result: Value, beta: Number, alpha: Number) -> Value:
    if alpha != 1:
        result = binary(b, "Mul", result, alpha)
    if beta == 0:
        return result
    return b.op("Add", result, bias if beta == 1 else binary(b, "Mul", bias, beta), shape=b.shape)


@rule("aten.outer.default", "aten.ger.default")
def outer(b: Builder, x: Value, y: Value) -> Value:
    column = b.op("Unsqueeze", x, b.ints([1]), shape=[*dims(x), 1])
    return binary(b, "Mul", column, y)


@rule("aten.einsum.default")
def einsum(b: Builder, equation: str, tensors: list[Value], path: list[int] | None = None) -> Value:
    equation = equation.replace(" ", "")
    if any(not is_float(t.dtype) for t in tensors):
        raise b.unsupported("einsum of integers has no kernel")
    return b.op("Einsum", *tensors, shape=b.shape, equation=equation)


@rule("aten.cdist.default", "aten._cdist_forward.default")
def cdist(b: Builder, x: Value, y: Value, p: float = 2.0, compute_mode: int | None = None) -> Value:
    left = b.op("Unsqueeze", x, b.ints([-2]), shape=[*dims(x)[:-1], 1, dims(x)[-1]])
    right = b.op("Unsqueeze", y, b.ints([-3]), shape=[*dims(y)[:-2], 1, *dims(y)[-2:]])
    if p not in (1.0, 2.0):
        raise b.unsupported(f"cdist with p = {p}")
    difference = b.op("Sub", left, right)
    return b.op("ReduceL1" if p == 1 else "ReduceL2", difference, b.ints([-1]), shape=b.shape, keepdims=0)


@rule("aten._trilinear.default")
def trilinear(
    b: Builder, x: Value, y: Value, z: Value, expand1: list[int], expand2: list[int], expand3: list[int],
    sumdim: list[int], unroll_dim: int = 1,
) -> Value:  # fmt: skip
    """The product of three tensors with axes of 1 put in, summed over some axes."""
    wide = []
    for factor, axes in ((x, expand1), (y, expand2), (z, expand3)):
        shape = list(dims(factor))
        for axis in sorted(axes):
            shape.insert(axis, 1)
        wide.append(b.op("Unsqueeze", factor, b.ints(list(axes)), shape=shape) if axes else factor)
    product = b.op("Mul", b.op("Mul", wide[0], wide[1]), wide[2])
    return b.op("ReduceSum", product, b.ints(list(sumdim)), shape=b.shape, keepdims=0) if sumdim else product


@rule("aten.linalg_det.default", "aten.det.default")
def det(b: Builder, x: Value) -> Value:
    return b.op("Det", x, shape=b.shape)


@rule("aten._linalg_det.default")
def determinant(b: Builder, x: Value) -> list[Value]:
    """The first of three results; the others are for gradients."""
    return [b.op("Det", x, shape=b.dimensions.shape(b.meta[0].shape))]


@rule("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")
def grouped_mm(
    b: Builder, x: Value, weight: Value, offs: Value, bias: Value | None = None, out_dtype: object = None
) -> Value:
    """Rows sorted by group, each group times its own matrix.

    Args:
        b: the builder.
        x: [rows, K].
        weight: [groups, K, N].
        offs: [groups], the end of each group among the rows.
        bias: unused by the models that call this.
        out_dtype: ignored: the result has the type that torch found.
    """
    if rank(x) != 2 or rank(weight) != 3 or bias is not None:
        raise b.unsupported("a grouped product other than [rows, K] × [groups, K, N]")
    groups, inner, width = (fixed(d) for d in dims(weight))
    ends = b.cast(offs, DataType.INT64)
    parts = []
    start = b.ints([0])
    for group in range(groups):
        end = b.op("Slice", ends, b.ints([group]), b.ints([group + 1]), b.ints([0]), shape=[1])
        rows: Dim = b.dimensions.unknown()
        block = b.op("Slice", x, start, end, b.ints([0]), shape=[rows, inner])
        matrix = b.op("Gather", weight, b.ints(group), shape=[inner, width], axis=0)
        parts.append(b.op("MatMul", block, matrix, shape=[rows, width]))
        start = end
    return b.op("Concat", *parts, shape=b.shape, axis=0)
