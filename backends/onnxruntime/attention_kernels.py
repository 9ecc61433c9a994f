"""Which kernels compute an attention: ``Attention``, ``MultiHeadAttention``, or products and a softmax."""

from __future__ import annotations

from typing import Any

import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from . import kernels
from .choice import Choices
from .legality import type_name

MULTI_HEAD = "Attention => MultiHeadAttention"
PRODUCTS = "Attention => FusedMatMul, Softmax, MatMul"
_USUAL, _MULTI, _TAKEN_APART = "Attention", "MultiHeadAttention", "FusedMatMul and Softmax"
_PLAIN = {"q_num_heads", "kv_num_heads", "scale", "is_causal", "softmax_precision"}
_SPLIT = [0, 2, 1, 3]


def choose_attention(graph: Graph, choices: Choices) -> list[Remark]:
    """Put another kernel in the place of ``Attention`` where it was measured to be the faster one.

    Considered are operators on flat heads without a cache, as many heads of keys as of queries, and no mask but an
    additive one.
    """
    if not choices.measured:
        return []
    rules = {_MULTI: (MULTI_HEAD, _multi_head), _TAKEN_APART: (PRODUCTS, _products)}
    counts: dict[str, int] = {}
    for node in [n for n in graph.graph if is_op(n, "Attention")]:
        variants = _variants(node)
        like = (str([dims(value) for value in node.inputs]), str(_attributes(node)))
        chosen = choices.pick([node], variants, _USUAL, like)
        if chosen in rules:
            rule, rewrite = rules[chosen]
            rewrite(Editor(graph, rule), node)
            counts[rule] = counts.get(rule, 0) + 1
    return [Remark("applied", "", f"{rule}: {n} times", {rule: n}) for rule, n in counts.items()]


def _attributes(node: onnx_ir.Node) -> dict[str, Any]:
    return {name: attribute(node, name) for name in sorted(node.attributes)}


def _variants(node: onnx_ir.Node) -> dict[str, Any]:
    """Ways to compute an attention, by name."""
    found: dict[str, Any] = {_USUAL: lambda small: None}
    heads = attribute(node, "q_num_heads")
    shapes = [dims(value) for value in node.inputs[:3]]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if heads is None or heads != attribute(node, "kv_num_heads") or not node.attributes.keys() <= _PLAIN:
        return found
    if len(node.outputs) > 1 or any(value is not None for value in node.inputs[4:]):
        return found
    if any(shape is None or len(shape) != 3 or not isinstance(shape[2], int) for shape in shapes):
        return found
    if shapes[1] is None or shapes[2] is None or shapes[0] is None or shapes[0][2] != shapes[1][2]:
        return found
    if any(type_name(value) != "tensor(float)" for value in node.inputs[:3]):
        return found
    if mask is not None and (type_name(mask) != "tensor(float)" or len(dims(mask) or ()) != 4):
        return found
    same_length = shapes[0][1] == shapes[1][1]
    causal = bool(attribute(node, "is_causal", 0))
    kinds = ["tensor(float)"] * 3
    attributes = ("num_heads", "scale", "unidirectional")
    if (same_length or not causal) and kernels.has("com.microsoft", _MULTI, 1, kinds, attributes):
        found[_MULTI] = _alone(_multi_head)
    if not causal and kernels.has("com.microsoft", "FusedMatMul", 1, kinds[:2], ("alpha", "transB")):
        found[_TAKEN_APART] = _alone(_products)
    return found


def _alone(rewrite: Any) -> Any:
    def apply(graph: Graph) -> None:
        for node in [n for n in graph.graph if is_op(n, "Attention")]:
            rewrite(Editor(graph, "timed"), node)

    return apply


def _mask(node: onnx_ir.Node) -> onnx_ir.Value | None:
    return node.inputs[3] if len(node.inputs) > 3 else None


def _multi_head(edit: Editor, node: onnx_ir.Node) -> None:
    query, key, value = node.inputs[:3]
    old = node.outputs[0]
    attributes: dict[str, Any] = {"num_heads": attribute(node, "q_num_heads")}
    if (scale := attribute(node, "scale")) is not None:
        attributes["scale"] = scale
    if attribute(node, "is_causal", 0):
        attributes["unidirectional"] = 1
    mask = _mask(node)
    inputs = [query, key, value] if mask is None else [query, key, value, None, None, mask]
    edit.at(node, [node])
    new = edit.op(
        _MULTI, inputs, attributes, domain="com.microsoft", dtype=old.dtype, shape=old.shape, hint=node.name
    )  # fmt: skip
    edit.replace(old, new)
    edit.sweep([node])


def _products(edit: Editor, node: onnx_ir.Node) -> None:
    old, heads = node.outputs[0], attribute(node, "q_num_heads")
    edit.at(node, [node])
    turned = []
    for value in node.inputs[:3]:
        shape = dims(value)
        assert value is not None and shape is not None and isinstance(shape[2], int)
        size = shape[2] // heads
        split = edit.op(
            "Reshape", [value, edit.ints([0, 0, heads, size])], dtype=value.dtype,
            shape=[shape[0], shape[1], heads, size],
        )  # fmt: skip
        turned.append(
            edit.op("Transpose", [split], {"perm": _SPLIT}, dtype=value.dtype, shape=[shape[0], heads, shape[1], size])
        )
    query, key, value = turned
    q, k, v = (dims(one) for one in turned)
    assert q is not None and k is not None and v is not None and isinstance(q[3], int)
    scale = attribute(node, "scale", None) or q[3] ** -0.5
    scores = edit.op(
        "FusedMatMul", [query, key], {"alpha": float(scale), "transB": 1}, domain="com.microsoft", dtype=old.dtype,
        shape=[*q[:3], k[2]],
    )  # fmt: skip
    mask = _mask(node)
    if mask is not None:
        scores = edit.op("Add", [scores, mask], dtype=old.dtype, shape=scores.shape)
    parts = edit.op("Softmax", [scores], {"axis": -1}, dtype=old.dtype, shape=scores.shape)
    result = edit.op("MatMul", [parts, value], dtype=old.dtype, shape=[*q[:3], v[3]])
    back = edit.op("Transpose", [result], {"perm": _SPLIT}, dtype=old.dtype, shape=[q[0], q[2], heads, v[3]])
    assert isinstance(v[3], int)
    flat = edit.op(
        "Reshape", [back, edit.ints([0, 0, heads * v[3]])], dtype=old.dtype, shape=old.shape, hint=node.name
    )  # fmt: skip
    edit.replace(old, flat)
    edit.sweep([node])
