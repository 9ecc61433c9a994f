"""Shapes of the ``com.microsoft`` operators that lowering for ONNX Runtime emits or imported files hold."""

from __future__ import annotations

from ..symbolic import UNKNOWN, Dim, Dims, add, exact_div, mul
from .contraction import matmul_dims
from .node_view import DataType, ShapeError, Typed, View, normalize, rule, show, unify_dim

MICROSOFT = "com.microsoft"


@rule("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "BiasSplitGelu", domain=MICROSOFT)
def _gelu(view: View) -> list[Typed] | None:
    return None if view.node.op_type == "BiasSplitGelu" else [(view.dtype(0), view.dims(0))]


@rule("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", domain=MICROSOFT)
def _matmul_nbits(view: View) -> list[Typed] | None:
    a, n, k = view.dims(0), view.attr("N"), view.attr("K")
    if n is None or k is None:
        return None
    if a is None:
        return [(view.dtype(0), None)]
    unify_dim(a[-1], k)
    return [(view.dtype(0), (*a[:-1], n))]


@rule("GatherBlockQuantized", domain=MICROSOFT)
def _gather_block_quantized(view: View) -> list[Typed]:
    data, indices = view.dims(0), view.dims(1)
    if data is None or indices is None:
        return [(view.dtype(2), None)]
    rank = len(data)
    gather = normalize(view.attr("gather_axis", 0), rank)
    # Codes of a byte tensor are packed along the last axis.
    packed = 8 // view.attr("bits", 4) if view.dtype(0) == DataType.UINT8 else 1
    data = (*data[:-1], mul(data[-1], packed))
    return [(view.dtype(2), data[:gather] + indices + data[gather + 1 :])]


@rule("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def _fused_matmul(view: View) -> list[Typed] | None:
    a, b = view.dims(0), view.dims(1)
    if view.attr("transBatchA", 0) or view.attr("transBatchB", 0):
        return None
    if a is not None and view.attr("transA", 0) and len(a) > 1:
        a = (*a[:-2], a[-1], a[-2])
    if b is not None and view.attr("transB", 0) and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    return [(view.dtype(0), matmul_dims(a, b))]


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def _dynamic_quantize_matmul(view: View) -> list[Typed]:
    return [(view.dtype(0), matmul_dims(view.dims(0), view.dims(1)))]


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul_integer_to_float(view: View) -> list[Typed]:
    return [(view.dtype(2), matmul_dims(view.dims(0), view.dims(1)))]


@rule("GroupQueryAttention", domain=MICROSOFT)
def _group_query_attention(view: View) -> list[Typed]:
    q, k, past = view.dims(0), view.dims(1), view.dims(3)
    heads, kv_heads = view.attr("num_heads"), view.attr("kv_num_heads")
    cache_dtype = view.dtype(3) if view.dtype(3) is not None else view.dtype(0)
    if q is None:
        return [(view.dtype(0), None), (cache_dtype, None), (cache_dtype, None)]
    if len(q) != 3:
        raise ShapeError(f"GroupQueryAttention of a query of shape {show(q)}")
    width = exact_div(q[2], heads if k is not None else heads + 2 * kv_heads)
    # Whether present is past plus the new keys or the shared buffer itself is known at run time only.
    present: Dims = (q[0], kv_heads, UNKNOWN, width)
    if past is not None and past[2] == 0:
        present = (q[0], kv_heads, q[1], width)
    elif past is None and view.input(3) is None:
        total = view.ints(6)
        present = (q[0], kv_heads, total[0] if total else q[1], width)
    return [(view.dtype(0), (q[0], q[1], mul(width, heads))), (cache_dtype, present), (cache_dtype, present)]


@rule("MultiHeadAttention", domain=MICROSOFT)
def _multi_head_attention(view: View) -> list[Typed]:
    q, k, v, past = view.dims(0), view.dims(1), view.dims(2), view.dims(6)
    heads = view.attr("num_heads")
    dtype = view.dtype(0)
    if q is None or len(q) != 3 or v is None:
        return [(dtype, None)] * 3
    width = v[2] if len(v) == 3 else mul(v[1], v[3])
    keys: Dim = UNKNOWN if k is None else k[1] if len(k) == 3 else k[2]
    if past is not None:
        keys = add(past[2], keys)
    head = exact_div(q[2], heads)
    present: Dims = (q[0], heads, keys, head)
    return [(dtype, (q[0], q[1], width)), (dtype, present), (dtype, (q[0], heads, keys, exact_div(width, heads)))]
