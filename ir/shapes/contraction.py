"""Shapes of products, convolutions, pooling, recurrences and attention."""

from __future__ import annotations

from collections.abc import Sequence

from ..symbolic import UNKNOWN, Dim, Dims, add, ceil_div, exact_div, floor_div, mul, sub
from .node_view import DataType, ShapeError, Typed, View, broadcast, rule, show, unify_dim


def matmul_dims(a: Dims | None, b: Dims | None) -> Dims | None:
    """The shape of ``a @ b`` as NumPy defines it; None if a rank is unknown."""
    if a is None or b is None:
        return None
    if not a or not b:
        raise ShapeError(f"MatMul of shapes {show(a)} and {show(b)}")
    try:
        unify_dim(a[-1], b[-2] if len(b) > 1 else b[0])
    except ShapeError as error:
        raise ShapeError(f"MatMul of shapes {show(a)} and {show(b)}") from error
    batch = broadcast(a[:-2], b[:-2])
    assert batch is not None
    rows = a[-2:-1] if len(a) > 1 else ()
    return batch + rows + (b[-1:] if len(b) > 1 else ())


@rule("MatMul")
def _matmul(view: View) -> list[Typed]:
    return [(view.common_dtype(0, 1), matmul_dims(view.dims(0), view.dims(1)))]


@rule("MatMulInteger")
def _matmul_integer(view: View) -> list[Typed]:
    return [(DataType.INT32, matmul_dims(view.dims(0), view.dims(1)))]


@rule("QLinearMatMul")
def _qlinear_matmul(view: View) -> list[Typed]:
    return [(view.dtype(7), matmul_dims(view.dims(0), view.dims(3)))]


@rule("Gemm")
@rule("FusedGemm", domain="com.microsoft")
def _gemm(view: View) -> list[Typed]:
    a, b = view.dims(0), view.dims(1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        if a is not None and b is not None:
            raise ShapeError(f"Gemm of shapes {show(a)} and {show(b)}")
        return [(view.dtype(0), (UNKNOWN, UNKNOWN))]
    a = a[::-1] if view.attr("transA", 0) else a
    b = b[::-1] if view.attr("transB", 0) else b
    return [(view.common_dtype(0, 1, 2), matmul_dims(a, b))]


@rule("Einsum")
def _einsum(view: View) -> list[Typed] | None:
    equation = str(view.attr("equation")).replace(" ", "")
    if "..." in equation or equation.count("->") != 1:
        return None
    left, right = equation.split("->")
    sizes: dict[str, Dim] = {}
    for i, term in enumerate(left.split(",")):
        dims = view.dims(i)
        if dims is None:
            continue
        if len(dims) != len(term):
            raise ShapeError(f"Einsum {equation} of an input of shape {show(dims)}")
        for letter, dim in zip(term, dims, strict=True):
            sizes[letter] = unify_dim(sizes[letter], dim) if letter in sizes and dim != 1 else sizes.get(letter, dim)
    return [(view.dtype(0), tuple(sizes.get(letter, UNKNOWN) for letter in right))]


@rule("Conv")
@rule("FusedConv", domain="com.microsoft")
def _conv(view: View) -> list[Typed]:
    return [(view.dtype(0), _conv_dims(view, view.dims(0), view.dims(1)))]


@rule("ConvInteger")
def _conv_integer(view: View) -> list[Typed]:
    return [(DataType.INT32, _conv_dims(view, view.dims(0), view.dims(1)))]


@rule("QLinearConv")
def _qlinear_conv(view: View) -> list[Typed]:
    return [(view.dtype(7), _conv_dims(view, view.dims(0), view.dims(3)))]


def _conv_dims(view: View, x: Dims | None, w: Dims | None) -> Dims | None:
    if x is None:
        return None if w is None else (UNKNOWN, w[0], *[UNKNOWN] * (len(w) - 2))
    kernel: Sequence[Dim] | None = w[2:] if w is not None else view.attr("kernel_shape")
    channels: Dim = w[0] if w is not None else UNKNOWN
    if w is not None:
        if len(w) != len(x):
            raise ShapeError(f"Conv of input {show(x)} with weight {show(w)}")
        unify_dim(x[1], mul(w[1], view.attr("group", 1)))
    if kernel is None:
        return (x[0], channels, *[UNKNOWN] * (len(x) - 2))
    return (x[0], channels, *_windows(view, x[2:], kernel))


def _windows(view: View, sizes: Dims, kernel: Sequence[Dim], ceil: bool = False) -> list[Dim]:
    """How many positions a window of ``kernel`` takes along each spatial dimension."""
    n = len(sizes)
    strides, dilations = view.attr("strides", [1] * n), view.attr("dilations", [1] * n)
    pads, auto = view.attr("pads", [0] * 2 * n), view.attr("auto_pad", "NOTSET")
    result: list[Dim] = []
    for i, size in enumerate(sizes):
        stride = strides[i]
        if auto.startswith("SAME"):
            result.append(ceil_div(size, stride))
            continue
        padding = 0 if auto == "VALID" else pads[i] + pads[i + n]
        extent = add(mul(sub(kernel[i], 1), dilations[i]), 1)
        room = sub(add(size, padding), extent)
        count = add(ceil_div(room, stride) if ceil else floor_div(room, stride), 1)
        if ceil and isinstance(count, int) and isinstance(size, int) and (count - 1) * stride >= size + pads[i]:
            # A window that would start in the padding on the right is left out.
            count -= 1
        elif ceil and not isinstance(count, int) and stride > 1:
            count = UNKNOWN
        result.append(count)
    return result


@rule("MaxPool", "AveragePool", "LpPool")
def _pool(view: View) -> list[Typed]:
    x = view.dims(0)
    dims: Dims | None = None
    if x is not None:
        dims = (*x[:2], *_windows(view, x[2:], view.attr("kernel_shape"), bool(view.attr("ceil_mode", 0))))
    return [(view.dtype(0), dims), (DataType.INT64, dims)]


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(view: View) -> list[Typed]:
    x = view.dims(0)
    return [(view.dtype(0), None if x is None else (*x[:2], *[1] * (len(x) - 2)))]


@rule("ConvTranspose")
def _conv_transpose(view: View) -> list[Typed]:
    x, w = view.dims(0), view.dims(1)
    if x is None or w is None:
        return [(view.dtype(0), None)]
    n = len(x) - 2
    channels = mul(w[1], view.attr("group", 1))
    shape = view.attr("output_shape")
    if shape is not None:
        return [(view.dtype(0), (x[0], channels, *shape[-n:]))]
    strides, dilations = view.attr("strides", [1] * n), view.attr("dilations", [1] * n)
    extra, pads = view.attr("output_padding", [0] * n), view.attr("pads", [0] * 2 * n)
    auto = view.attr("auto_pad", "NOTSET")
    sizes: list[Dim] = []
    for i, size in enumerate(x[2:]):
        if auto.startswith("SAME"):
            sizes.append(mul(size, strides[i]))
            continue
        padding = 0 if auto == "VALID" else pads[i] + pads[i + n]
        extent = add(mul(sub(w[2 + i], 1), dilations[i]), 1)
        sizes.append(add(add(mul(sub(size, 1), strides[i]), extent), extra[i] - padding))
    return [(view.dtype(0), (x[0], channels, *sizes))]


@rule("LSTM", "GRU", "RNN")
def _recurrent(view: View) -> list[Typed]:
    x, hidden = view.dims(0), view.attr("hidden_size")
    directions = 2 if view.attr("direction", "forward") == "bidirectional" else 1
    hidden = UNKNOWN if hidden is None else hidden
    length, batch = (UNKNOWN, UNKNOWN) if x is None else x[:2]
    state: Dims = (directions, batch, hidden)
    sequence: Dims = (length, directions, batch, hidden)
    if view.attr("layout", 0):
        length, batch = batch, length
        state, sequence = (batch, directions, hidden), (batch, length, directions, hidden)
    return [(view.dtype(0), sequence), (view.dtype(0), state), (view.dtype(0), state)]


@rule("Attention")
def _attention(view: View) -> list[Typed]:
    q, k, v = (view.dims(i) for i in range(3))
    past_k, past_v = view.dims(4), view.dims(5)
    dtype, nothing = view.dtype(0), (view.dtype(0), None)
    if q is None or k is None or v is None:
        return [nothing, nothing, nothing, nothing]
    batch, queries, keys = q[0], q[-2], k[-2]
    if len(q) == 3:
        heads: Dim = view.attr("q_num_heads")
        kv_heads: Dim = view.attr("kv_num_heads")
        head, v_head = exact_div(k[2], kv_heads), exact_div(v[2], kv_heads)
    else:
        heads, kv_heads, head, v_head = q[1], k[1], k[3], v[3]
    everything = keys
    if view.input(4) is not None:
        everything = UNKNOWN if past_k is None else add(past_k[2], keys)
    y: Dims = (batch, queries, mul(heads, v_head)) if len(q) == 3 else (batch, heads, queries, v_head)
    past_v_length = everything
    if past_v is not None:
        past_v_length = add(past_v[2], v[-2])
    return [
        (dtype, y),
        (view.dtype(1), (batch, kv_heads, everything, head)),
        (view.dtype(2), (batch, kv_heads, past_v_length, v_head)),
        (dtype, (batch, heads, queries, everything)),
    ]


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain="com.microsoft")
def _rotary(view: View) -> list[Typed]:
    return [(view.dtype(0), view.dims(0))]
