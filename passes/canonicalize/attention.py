"""``Attention``: fewer heads of keys instead of repeated ones; one operator for the ``If`` of a compiled file."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import UNPADDED, attribute, constant, is_op, producer, rules_of
from ...ir.symbolic import same
from .work import NodeRule, Work, dims_of, used

_CHOSEN = "If(nothing is hidden, Attention(q, k, v), Attention(q, k, v, mask)) => Attention(q, k, v, mask)"
_RULE = "Attention(q, repeat(k), repeat(v)) => Attention(q, k, v)"


def repeated(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value, int] | None:
    """``(x, n)`` if ``value`` is x [B, H, S, D] with each head repeated ``n`` times in a row, [B, H*n, S, D].

    That is ``repeat_kv`` of Hugging Face: Unsqueeze or Reshape to [B, H, 1, S, D], Expand or Tile, Reshape.
    """
    reshape = producer(value, "Reshape")
    copy = producer(reshape.inputs[0], "Expand", "Tile") if reshape is not None else None
    view = producer(copy.inputs[0], "Unsqueeze", "Reshape") if copy is not None else None
    if reshape is None or copy is None or view is None:
        return None
    source = view.inputs[0]
    before, lifted, wide, after = dims_of(source), dims_of(view.outputs[0]), dims_of(copy.outputs[0]), dims_of(value)
    if source is None or before is None or lifted is None or wide is None or after is None:
        return None
    if len(before) != 4 or len(lifted) != 5 or len(wide) != 5 or len(after) != 4:
        return None
    times = wide[2]
    heads = before[1]
    if lifted[2] != 1 or not isinstance(times, int) or not isinstance(heads, int) or after[1] != heads * times:
        return None
    kept = [0, 1, 3, 4]
    if not all(same(before[i], lifted[k]) for i, k in enumerate(kept)):
        return None
    if not all(same(before[i], wide[k]) for i, k in enumerate(kept)) and not _only_heads(copy, times):
        return None
    # A Reshape from [B, H, n, S, D] to [B, H*n, S, D] with the last dimensions kept can only merge H and n.
    if not all(same(after[i], before[i]) for i in (2, 3)):
        return None
    return source, times


def _only_heads(copy: onnx_ir.Node, times: int) -> bool:
    numbers = constant(copy.inputs[1], limit=5)
    return numbers is not None and numbers.tolist() == [1, 1, times, 1, 1]


def _attention(work: Work, node: onnx_ir.Node) -> bool:
    keys, values = repeated(node.inputs[1]), repeated(node.inputs[2])
    if keys is None or values is None:
        return False
    query = dims_of(node.inputs[0])
    if query is None or len(query) != 4 or keys[1] != values[1]:
        return False
    past = [v for v in node.inputs[4:6] if v is not None]
    if past or any(used(v) for v in node.outputs[1:3]):
        work.missed(node, "key/value heads are repeated, but the cache holds the repeated ones")
        return False
    old = [node.inputs[1], node.inputs[2]]
    node.replace_input_with(1, keys[0])
    node.replace_input_with(2, values[0])
    makers = [v.producer() for v in old if v is not None]
    work.edit(_RULE, node).sweep([maker for maker in makers if maker is not None])
    for value in node.outputs[1:3]:
        value.shape = None
    work.count(_RULE, node)
    return True


def _unpadded(work: Work, node: onnx_ir.Node) -> bool:
    """What lowering made of an attention, made one again: other passes look for that, and lowering comes once more."""
    masked: onnx_ir.Node | None = node
    while masked is not None and is_op(masked, "If"):
        if UNPADDED not in rules_of(masked):
            return False
        branch = list(masked.attributes["else_branch"].as_graph())
        masked = branch[0] if len(branch) == 1 else None
    if masked is None or not is_op(masked, "Attention") or len(masked.inputs) < 4:
        return False
    old, edit = node.outputs[0], work.edit(_CHOSEN, node)
    attributes = {name: attribute(masked, name) for name in masked.attributes}
    new = edit.op("Attention", masked.inputs, attributes, dtype=old.dtype, shape=old.shape, hint=node.name)
    edit.replace(old, new)
    edit.sweep([node])
    work.count(_CHOSEN)
    return True


RULES: dict[str, list[NodeRule]] = {"Attention": [_attention], "If": [_unpadded]}
