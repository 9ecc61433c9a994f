"""``Attention`` and ``RotaryEmbedding`` taken apart, as the operators' specification defines them, in opset 13."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir

from ..ir.errors import UnsupportedError
from ..ir.graph import attribute, dims
from ..ir.rewrite import Editor

_END = 1 << 31


def _size(value: onnx_ir.Value, axis: int, what: str) -> int:
    shape = dims(value)
    size = None if shape is None else shape[axis]
    if not isinstance(size, int):
        raise UnsupportedError(f"{what} is not a fixed number", where=value.name)
    return size


def _part(edit: Editor, x: onnx_ir.Value, start: int, end: int, step: int = 1) -> onnx_ir.Value:
    axes = edit.ints([len(dims(x) or ()) - 1])
    return edit.op("Slice", [x, edit.ints([start]), edit.ints([end]), axes, edit.ints([step])])


def rotary_embedding(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    """``x * cos + rotate_half(x) * sin`` with caches of the whole head (opset 23's definition)."""
    x, cos, sin = node.inputs[:3]
    assert x is not None and cos is not None and sin is not None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        cos, sin = (edit.op("Gather", [c, node.inputs[3]], {"axis": 0}) for c in (cos, sin))
    flat, heads_axis = x, 1
    if len(dims(x) or ()) == 3:
        heads = attribute(node, "num_heads", 0)
        size = _size(x, 2, "the hidden size of RotaryEmbedding") // heads
        x, heads_axis = edit.op("Reshape", [x, edit.ints([0, 0, heads, size])]), 2
    size = _size(x, 3, "the head size of RotaryEmbedding")
    width = attribute(node, "rotary_embedding_dim", 0) or size
    turning = x if width == size else _part(edit, x, 0, width)
    interleaved = bool(attribute(node, "interleaved", 0))
    cos, sin = (_whole_cache(edit, c, width, interleaved, heads_axis) for c in (cos, sin))
    turned = _rotate_half(edit, turning, width, interleaved)
    out = edit.op("Add", [edit.op("Mul", [turning, cos]), edit.op("Mul", [turned, sin])])
    if width != size:
        out = edit.op("Concat", [out, _part(edit, x, width, _END)], {"axis": -1})
    if flat is not x:
        out = edit.op("Reshape", [out, edit.ints([0, 0, heads * size])])
    return out


def _whole_cache(edit: Editor, half: onnx_ir.Value, width: int, interleaved: bool, heads_axis: int) -> onnx_ir.Value:
    if interleaved:
        stacked = edit.op("Unsqueeze", [half, edit.ints([-1])])
        tiled = edit.op("Tile", [stacked, edit.ints([1, 1, 1, 2])])
        whole = edit.op("Reshape", [tiled, edit.ints([0, 0, width])])
    else:
        whole = edit.op("Concat", [half, half], {"axis": -1})
    return edit.op("Unsqueeze", [whole, edit.ints([heads_axis])])


def _rotate_half(edit: Editor, x: onnx_ir.Value, width: int, interleaved: bool) -> onnx_ir.Value:
    if not interleaved:
        first, second = _part(edit, x, 0, width // 2), _part(edit, x, width // 2, _END)
        return edit.op("Concat", [edit.op("Neg", [second]), first], {"axis": -1})
    even, odd = _part(edit, x, 0, _END, 2), _part(edit, x, 1, _END, 2)
    stacked = [edit.op("Unsqueeze", [v, edit.ints([-1])]) for v in (edit.op("Neg", [odd]), even)]
    heads = _size(x, 2, "axis 2") if isinstance((dims(x) or (0, 0, None))[2], int) else 0
    target = edit.ints([0, 0, heads, width])
    return edit.op("Reshape", [edit.op("Concat", stacked, {"axis": -1}), target])


def attention(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    """``softmax(scale * Q K^T + mask) V`` with heads, cache, grouped queries, causality and soft cap (opset 23)."""
    inputs: list[onnx_ir.Value | None] = [*node.inputs, *[None] * 6]
    q, k, v, mask, past_key, past_value = inputs[:6]
    assert q is not None and k is not None and v is not None
    if inputs[6] is not None or any(o.uses() or o.is_graph_output() for o in node.outputs[3:]):
        raise UnsupportedError("Attention with padded lengths or an output of scores", where=node.name)
    flat = len(dims(q) or ()) == 3
    if flat:
        heads, fewer = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
        q, k, v = (_split_heads(edit, x, n) for x, n in ((q, heads), (k, fewer), (v, fewer)))
    if past_key is not None and past_value is not None:
        k, v = (edit.op("Concat", [p, x], {"axis": 2}) for p, x in ((past_key, k), (past_value, v)))
    for output, present in zip(node.outputs[1:3], (k, v), strict=False):
        if output.uses() or output.is_graph_output():
            edit.replace(output, present)
    times = _size(q, 1, "the number of heads") // _size(k, 1, "the number of key heads")
    k, v = (_repeated(edit, x, times) for x in (k, v))
    scale = attribute(node, "scale", None) or 1.0 / math.sqrt(_size(q, 3, "the head size"))
    scores = edit.op("MatMul", [q, edit.op("Transpose", [k], {"perm": [0, 1, 3, 2]})])
    scores = edit.op("Mul", [scores, _number(edit, scale, q)])
    cap = attribute(node, "softcap", 0.0)
    if cap:
        inner = edit.op("Tanh", [edit.op("Div", [scores, _number(edit, cap, q)])])
        scores = edit.op("Mul", [inner, _number(edit, cap, q)])
    if attribute(node, "is_causal", 0):
        scores = edit.op("Where", [_causal(edit, q, k, past_key), scores, _number(edit, -np.inf, q)])
    if mask is not None and mask.dtype == onnx_ir.DataType.BOOL:
        scores = edit.op("Where", [mask, scores, _number(edit, -np.inf, q)])
    elif mask is not None:
        scores = edit.op("Add", [scores, mask])
    probabilities = edit.op("Softmax", [scores], {"axis": -1})
    out = edit.op("MatMul", [_unmasked(edit, probabilities, mask), v])
    if not flat:
        return out
    width = _size(q, 1, "heads") * _size(v, 3, "the head size of the values")
    return edit.op("Reshape", [edit.op("Transpose", [out], {"perm": [0, 2, 1, 3]}), edit.ints([0, 0, width])])


def _unmasked(edit: Editor, probabilities: onnx_ir.Value, mask: onnx_ir.Value | None) -> onnx_ir.Value:
    """Zero for rows that a mask hides whole, as the operator defines and exporters of SDPA write."""
    if mask is None:
        return probabilities
    nan = edit.op("IsNaN", [probabilities])
    return edit.op("Where", [nan, _number(edit, 0.0, probabilities), probabilities])


def _number(edit: Editor, number: float, like: onnx_ir.Value) -> onnx_ir.Value:
    dtype = like.dtype or onnx_ir.DataType.FLOAT
    return edit.initializer(onnx_ir.Tensor(np.asarray(number, dtype=dtype.numpy())), "number")


def _split_heads(edit: Editor, x: onnx_ir.Value, heads: int) -> onnx_ir.Value:
    size = _size(x, 2, "the hidden size of Attention") // heads
    apart = edit.op("Reshape", [x, edit.ints([0, 0, heads, size])])
    return edit.op("Transpose", [apart], {"perm": [0, 2, 1, 3]})


def _repeated(edit: Editor, x: onnx_ir.Value, times: int) -> onnx_ir.Value:
    if times == 1:
        return x
    heads, size = _size(x, 1, "heads"), _size(x, 3, "the head size")
    shape = _sizes(edit, x, [0])
    rows = _sizes(edit, x, [2])
    wide = edit.op("Expand", [edit.op("Unsqueeze", [x, edit.ints([2])]), edit.ints([1, 1, times, 1, 1])])
    target: Sequence[onnx_ir.Value] = [shape, edit.ints([heads * times]), rows, edit.ints([size])]
    return edit.op("Reshape", [wide, edit.op("Concat", target, {"axis": 0})])


def _sizes(edit: Editor, x: onnx_ir.Value, axes: list[int]) -> onnx_ir.Value:
    return edit.op("Gather", [edit.op("Shape", [x]), edit.ints(axes)], {"axis": 0})


def _causal(edit: Editor, q: onnx_ir.Value, k: onnx_ir.Value, past: onnx_ir.Value | None) -> onnx_ir.Value:
    """[queries, keys]: whether a key is not later than the query."""

    def positions(x: onnx_ir.Value) -> onnx_ir.Value:
        size = edit.op("Squeeze", [_sizes(edit, x, [2]), edit.ints([0])])
        return edit.op("Range", [edit.ints(0), size, edit.ints(1)])

    queries = edit.op("Unsqueeze", [positions(q), edit.ints([1])])
    if past is not None:
        queries = edit.op("Add", [queries, _sizes(edit, past, [2])])
    return edit.op("LessOrEqual", [positions(k), queries])
