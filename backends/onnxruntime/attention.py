"""Attention as the runtime's kernel takes it best: heads unsplit, the cache appended inside the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, module_path, read_elsewhere
from ...ir.remarks import Remark
from ...ir.rewrite import Editor

PAST = "attention(concat(past, x)) => attention(x, past)"
FLAT = "attention of split heads => attention of flat heads"
_SPLIT = [0, 2, 1, 3]


def lower_attention(graph: Graph) -> list[Remark]:
    """Give ``Attention`` its cache as ``past`` inputs, and its operands with heads side by side.

    Each saves the copies of a ``Concat``, or of a ``Reshape`` and ``Transpose``, per operand and layer. Keys and values
    that are outputs of the graph become outputs of the operator, which copies them as it divides the heads anyway.
    """
    past, flat = Editor(graph, PAST), Editor(graph, FLAT)
    flat.names = past.names
    counts = {PAST: 0, FLAT: 0}
    remarks: list[Remark] = []
    for node in [n for n in graph.graph if is_op(n, "Attention")]:
        current = _append_inside(past, node)
        if isinstance(current, str):
            remarks.append(Remark("missed", module_path(node), f"the cache stays outside of Attention: {current}"))
        elif current is not None:
            counts[PAST] += 1
            node = current
        counts[FLAT] += _flatten(flat, node)
    remarks += [Remark("applied", "", f"{name}: {n} times", {name: n}) for name, n in counts.items() if n]
    return remarks


def _input(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _concat(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value, onnx_ir.Value] | None:
    """Past and new part of a cache that a Concat along the sequence makes."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Concat") or len(node.inputs) != 2 or attribute(node, "axis") not in (2, -2):
        return None
    first, second = node.inputs
    if first is None or second is None or len(dims(first) or ()) != 4 or len(dims(second) or ()) != 4:
        return None
    return first, second


def _append_inside(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Node | str | None:
    keys, values = _concat(_input(node, 1)), _concat(_input(node, 2))
    if keys is None or values is None or _input(node, 4) is not None or _input(node, 5) is not None:
        return None
    if len(node.outputs) > 1:
        return "it has other outputs in use"
    if attribute(node, "is_causal", 0):
        return "with is_causal, a cache inside would shift the mask"
    old_key, old_value = node.inputs[1], node.inputs[2]
    assert old_key is not None and old_value is not None
    if any(use.node is not node and _before(use.node, node) for v in (old_key, old_value) for use in v.uses()):
        return "something before it reads the joined cache"
    edit.at(node, [node])
    inputs = [node.inputs[0], keys[1], values[1], _input(node, 3), keys[0], values[0]]
    outputs = edit.ops("Attention", inputs, _attributes(node), outputs=3, hint=node.name, infer_types=False)
    for new, old in zip(outputs, (node.outputs[0], old_key, old_value), strict=True):
        new.type, new.shape = old.type, old.shape
    dead = [node, *(v.producer() for v in (old_key, old_value))]
    # The node must not read what it makes.
    node.replace_input_with(1, None)
    node.replace_input_with(2, None)
    for new, old in zip(outputs, (node.outputs[0], old_key, old_value), strict=True):
        edit.replace(old, new)
    edit.sweep([n for n in dead if n is not None])
    return outputs[0].producer()


def _before(node: onnx_ir.Node, other: onnx_ir.Node) -> bool:
    """Whether ``node`` comes before ``other`` in the same graph (or is in a subgraph: then nothing is known)."""
    graph = other.graph
    if node.graph is not graph or graph is None:
        return True
    for candidate in graph:
        if candidate is node:
            return True
        if candidate is other:
            return False
    return True


def is_plain(node: onnx_ir.Node) -> bool:
    """Whether an ``Attention`` does nothing to its scores but to scale, mask and normalize them."""
    plain = {"q_num_heads", "kv_num_heads", "scale", "is_causal", "softmax_precision"}
    return all(name in plain or not attribute(node, name) for name in node.attributes)  # 0: no cap, no other output


def _attributes(node: onnx_ir.Node) -> dict[str, Any]:
    return {name: attribute(node, name) for name in node.attributes}


@dataclass
class _Operand:
    """``rotary?(transpose(reshape(flat)))``, heads side by side in ``flat`` [batch, sequence, heads * size]."""

    flat: onnx_ir.Value
    heads: int
    rotary: onnx_ir.Node | None
    last: onnx_ir.Node


def _operand(value: onnx_ir.Value | None) -> _Operand | None:
    node = None if value is None else value.producer()
    if node is None:
        return None
    last = node
    rotary = None
    if is_op(node, "RotaryEmbedding"):
        rotary = node
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or not is_op(node, "Transpose") or attribute(node, "perm") != _SPLIT:
        return None
    reshape = None if node.inputs[0] is None else node.inputs[0].producer()
    if (
        reshape is None
        or not is_op(reshape, "Reshape")
        or read_elsewhere(reshape)
        or (rotary is not None and read_elsewhere(node))
    ):
        return None
    flat, split = dims(reshape.inputs[0]), dims(reshape.outputs[0])
    if flat is None or split is None or len(flat) != 3 or len(split) != 4 or flat[:2] != split[:2]:
        return None
    if not (isinstance(flat[2], int) and isinstance(split[2], int) and isinstance(split[3], int)):
        return None
    value = reshape.inputs[0]
    assert value is not None
    return _Operand(value, split[2], rotary, last) if split[2] * split[3] == flat[2] else None


def _flatten(edit: Editor, node: onnx_ir.Node) -> int:
    operands = [_operand(_input(node, i)) for i in range(3)]
    query, key, value = operands
    if query is None or key is None or value is None or read_elsewhere(query.last):
        return 0
    kept = read_elsewhere(key.last) or read_elsewhere(value.last)
    if kept and not _keeps(node, [key.last.outputs[0], value.last.outputs[0]]):
        return 0
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return 0
    transpose = uses[0].node
    if not is_op(transpose, "Transpose") or attribute(transpose, "perm") != _SPLIT or read_elsewhere(transpose):
        return 0
    reshape = next(iter(transpose.outputs[0].uses())).node
    width = dims(reshape.outputs[0])
    if not is_op(reshape, "Reshape") or width is None or len(width) != 3 or not isinstance(width[2], int):
        return 0
    split = dims(transpose.outputs[0])
    if split is None or len(split) != 4 or width[:2] != split[:2]:
        return 0
    edit.at(node, [node])
    inputs = [_flat(edit, operand, node) for operand in (query, key, value)] + list(node.inputs[3:])
    attributes = {**_attributes(node), "q_num_heads": query.heads, "kv_num_heads": key.heads}
    count = 3 if kept else len(node.outputs)
    outputs = edit.ops("Attention", inputs, attributes, outputs=count, hint=node.name, infer_types=False)
    result = reshape.outputs[0]
    outputs[0].type, outputs[0].shape = result.type, result.shape
    given = [key.last.outputs[0], value.last.outputs[0]] if kept else list(node.outputs[1:])
    for new, old in zip(outputs[1:], given, strict=True):
        new.type, new.shape = old.type, old.shape
    if kept:  # the old node goes, and must not read what takes the place of its operands
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)
    for new, old in zip(outputs[1:], given, strict=True):
        edit.replace(old, new)
    edit.replace(result, outputs[0])
    edit.sweep([reshape, *((key.last, value.last) if kept else ())])
    return 1


def _keeps(node: onnx_ir.Node, cache: list[onnx_ir.Value]) -> bool:
    """Whether keys and values that others read, too, can be outputs of the operator: nothing else is yet."""
    if len(node.outputs) > 1 or _input(node, 4) is not None or _input(node, 5) is not None or cache[0] is cache[1]:
        return False
    return not any(use.node is not node and _before(use.node, node) for value in cache for use in value.uses())


def _flat(edit: Editor, operand: _Operand, node: onnx_ir.Node) -> onnx_ir.Value:
    rotary = operand.rotary
    if rotary is None:
        return operand.flat
    edit.at(node, [rotary])
    attributes = {**_attributes(rotary), "num_heads": operand.heads}
    flat = operand.flat
    value = edit.op(
        "RotaryEmbedding", [flat, *rotary.inputs[1:]], attributes, dtype=flat.dtype, shape=flat.shape, hint=rotary.name
    )
    edit.at(node, [node])
    return value
