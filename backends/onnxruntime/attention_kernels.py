"""Which kernels compute an attention: of three operators, or those of products and a softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from . import kernels
from .attention import is_plain
from .choice import Choices
from .legality import type_name

GROUPED = "Attention => GroupQueryAttention"
MULTI_HEAD = "Attention => MultiHeadAttention"
PRODUCTS = "Attention => FusedMatMul, Softmax, MatMul"
_USUAL, _MULTI, _TAKEN_APART = "Attention", "MultiHeadAttention", "FusedMatMul and Softmax"
_GROUP = "GroupQueryAttention"
_FLOAT = "tensor(float)"
_SPLIT = [0, 2, 1, 3]
_GROUPED_SIZE = 8
"""What the size of a head must be a multiple of for the grouped kernel."""


def choose_attention(graph: Graph, choices: Choices) -> list[Remark]:
    """Put another kernel in the place of ``Attention`` where it was measured to be the faster one.

    Considered are operators on flat heads without a cache: with as many heads of keys as of queries and no mask but an
    additive one, or causal ones of plain sizes, whose heads of keys may be fewer, and which may give keys and values.
    """
    if not choices.measured:
        return []
    rules = {
        _MULTI: (MULTI_HEAD, _multi_head),
        _GROUP: (GROUPED, _grouped),
        _TAKEN_APART: (PRODUCTS, _products),
    }
    counts: dict[str, int] = {}
    edits: dict[str, Editor] = {}
    for node in [n for n in graph.graph if is_op(n, "Attention")]:
        variants = _variants(node)
        like = (str([dims(value) for value in node.inputs]), str(_attributes(node)), len(node.outputs))
        chosen = choices.pick([node], variants, _USUAL, like)
        if chosen in rules:
            rule, rewrite = rules[chosen]
            if rule not in edits:
                edits[rule] = Editor(graph, rule, names=next((edit.names for edit in edits.values()), None))
            rewrite(edits[rule], node)
            counts[rule] = counts.get(rule, 0) + 1
    return [Remark("applied", "", f"{rule}: {n} times", {rule: n}) for rule, n in counts.items()]


def _attributes(node: onnx_ir.Node) -> dict[str, Any]:
    return {name: attribute(node, name) for name in sorted(node.attributes)}


def _variants(node: onnx_ir.Node) -> dict[str, Any]:
    """Ways to compute an attention, by name."""
    found: dict[str, Any] = {_USUAL: lambda small: None}
    heads, kv_heads = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    shapes = [dims(value) for value in node.inputs[:3]]
    query, key, value = (shape if shape is not None and len(shape) == 3 else None for shape in shapes)
    mask = _mask(node)
    if query is None or key is None or value is None or heads is None or not is_plain(node):
        return found
    if any(value is not None for value in node.inputs[4:]):
        return found
    if not all(isinstance(shape[2], int) for shape in (query, key, value)):
        return found
    if any(type_name(value) != _FLOAT for value in node.inputs[:3]):
        return found
    causal = bool(attribute(node, "is_causal", 0))
    plain = all(isinstance(size, int) for size in query[:2]) and query[:2] == key[:2] and key == value
    size = query[2] // heads if isinstance(query[2], int) else 0
    fits = heads % kv_heads == 0 and size % _GROUPED_SIZE == 0 and len(node.outputs) in (1, 3)
    if causal and plain and mask is None and fits:
        found |= {_GROUP: _alone(_grouped)} if kernels.has("com.microsoft", _GROUP, 1, [_FLOAT] * 3) else {}
    if len(node.outputs) > 1 or heads != kv_heads or query[2] != key[2]:
        return found
    if mask is not None and (type_name(mask) != _FLOAT or len(dims(mask) or ()) != 4):
        return found
    attributes = ("num_heads", "scale", "unidirectional")
    if (query[1] == key[1] or not causal) and kernels.has("com.microsoft", _MULTI, 1, [_FLOAT] * 3, attributes):
        found[_MULTI] = _alone(_multi_head)
    if not causal and kernels.has("com.microsoft", "FusedMatMul", 1, [_FLOAT] * 2, ("alpha", "transB")):
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


def _grouped(edit: Editor, node: onnx_ir.Node) -> None:
    query = dims(node.inputs[0])
    assert query is not None
    batch, length = query[:2]
    assert isinstance(batch, int) and isinstance(length, int)
    attributes: dict[str, Any] = {
        "num_heads": attribute(node, "q_num_heads"), "kv_num_heads": attribute(node, "kv_num_heads"),
    }  # fmt: skip
    if (scale := attribute(node, "scale")) is not None:
        attributes["scale"] = scale
    edit.at(node, [node])
    last = edit.initializer(np.full(batch, length - 1, np.int32), "last_position")
    total = edit.initializer(np.asarray(length, np.int32), "length")
    outputs = edit.ops(
        _GROUP, [*node.inputs[:3], None, None, last, total], attributes, outputs=3, domain="com.microsoft",
        hint=node.name, infer_types=False,
    )  # fmt: skip
    for new, old in zip(outputs, node.outputs, strict=False):
        new.type, new.shape = old.type, old.shape
        edit.replace(old, new)
    for new, value in zip(outputs[len(node.outputs) :], node.inputs[1:3][len(node.outputs) - 1 :], strict=True):
        shape, kv_heads = dims(value), attribute(node, "kv_num_heads")
        assert value is not None and shape is not None and isinstance(shape[2], int)
        new.type, new.shape = value.type, onnx_ir.Shape([batch, kv_heads, length, shape[2] // kv_heads])
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
