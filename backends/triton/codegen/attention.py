"""Attention in a generated function: which nodes a template computes, and why others are PyTorch's.

PyTorch's flash attention is the better choice in float32, and without a mask or a bound of the scores. What it has no
fast kernel for is left to the template: masks (it falls back to slower ones), bounds (it has none), and few queries of
grouped heads against many masked keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir

from ....ir.graph import attribute, dims, is_op
from ....ir.symbolic import same

_HALF = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
_WIDEST = 256


@dataclass(frozen=True)
class Found:
    """A call of ``attend``.

    Attributes:
        q, k, v: [batch, heads, tokens, d].
        mask: of bools or of q's type, or None.
        options: more arguments.
    """

    q: onnx_ir.Value
    k: onnx_ir.Value
    v: onnx_ir.Value
    mask: onnx_ir.Value | None
    options: tuple[str, ...]


def find(node: onnx_ir.Node) -> Found | str | None:
    """The call for a node, or why there is none; None of an operator that is no attention."""
    if not is_op(node, "Attention"):
        return None
    inputs = [*node.inputs, *[None] * 7]
    q, k, v, mask = inputs[:4]
    assert q is not None and k is not None and v is not None
    if q.dtype not in _HALF:
        return "PyTorch's kernels are the better choice in float32" if q.dtype else "the type is not known"
    if any(value is not None for value in inputs[4:7]):
        return "it has a cache or lengths of its own"
    if any(value.name and (list(value.uses()) or value.is_graph_output()) for value in node.outputs[1:]):
        return "its scores or its cache are read"
    shapes = [dims(value) for value in (q, k, v)]
    if any(shape is None or len(shape) != 4 for shape in shapes) or k.dtype != q.dtype or v.dtype != q.dtype:
        return "queries, keys and values are not known to have four axes and one type"
    (_, heads, queries, d), (_, shared, keys, _), (*_, d_v) = (shape for shape in shapes if shape is not None)
    if not (isinstance(heads, int) and isinstance(shared, int) and isinstance(d, int) and isinstance(d_v, int)):
        return "the number or the width of heads is not known"
    if max(d, d_v) > _WIDEST or heads % shared:
        return f"{heads} heads of {d} by {shared} of {d_v} have no kernel"
    causal, cap = bool(attribute(node, "is_causal", 0)), float(attribute(node, "softcap", 0.0))
    if causal and not same(queries, keys):
        return "the causal rule counts from the first key"
    if mask is None and not cap:
        return "without a mask or a bound of the scores PyTorch's flash attention is as good"
    if mask is not None:
        shape = dims(mask)
        if mask.dtype not in (onnx_ir.DataType.BOOL, q.dtype) or shape is None or len(shape) > 4:
            return "the mask is of another type or of unknown rank"
        if not shape or not same(shape[-1], keys):
            return "the mask is shorter than the keys"
    options = ["causal=True"] if causal else []
    if attribute(node, "scale"):
        options.append(f"scale={float(attribute(node, 'scale'))!r}")
    if cap:
        options.append(f"soft_cap={cap!r}")
    return Found(q, k, v, mask, tuple(options))
