"""Key and value heads that were repeated for grouped queries, before they were."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import attribute, dims, is_op, producer
from ...ir.rewrite import Editor
from ...ir.symbolic import same
from .match import ints, strip


def unrepeated(value: onnx_ir.Value) -> tuple[onnx_ir.Value, int]:
    """``value`` before each head was repeated, and how often it was (1: it was not).

    ``[batch, heads, sequence, size]`` is repeated by Unsqueeze on axis 2, Expand or Tile, and a Reshape that joins axes
    1 and 2: head h stands at h * n to h * n + n - 1, which is what Attention assumes of fewer key/value heads.
    """
    reshape = producer(strip(value), "Reshape")
    if reshape is None or reshape.inputs[0] is None:
        return value, 1
    repeat = producer(strip(reshape.inputs[0]), "Expand", "Tile")
    if repeat is None or repeat.inputs[0] is None:
        return value, 1
    unsqueeze = producer(strip(repeat.inputs[0]), "Unsqueeze")
    if unsqueeze is None or unsqueeze.inputs[0] is None:
        return value, 1
    axes = ints(unsqueeze.inputs[1]) if len(unsqueeze.inputs) > 1 else attribute(unsqueeze, "axes")
    source = strip(unsqueeze.inputs[0])
    before, after = dims(source), dims(reshape.outputs[0])
    if before is None or after is None or len(before) != 4 or len(after) != 4 or axes not in ([2], [-3]):
        return value, 1
    times = _times(repeat, before)
    if times is None:
        return value, 1
    # With one axis joined and the last one kept, equal sequence or equal heads settle the rest.
    if not same(before[3], after[3]):
        return value, 1
    joined = isinstance(before[1], int) and isinstance(after[1], int) and after[1] == before[1] * times
    if not joined and not same(before[2], after[2]):
        return value, 1
    return source, times


def _times(repeat: onnx_ir.Node, before: tuple[int | onnx_ir.SymbolicDim, ...]) -> int | None:
    target = ints(repeat.inputs[1])
    if target is None:
        shape = dims(repeat.outputs[0])
        if not is_op(repeat, "Expand") or shape is None or len(shape) != 5 or not isinstance(shape[2], int):
            return None
        around = [*shape[:2], *shape[3:]]
        return shape[2] if all(same(a, b) for a, b in zip(around, before, strict=True)) else None
    if len(target) != 5:
        return None
    for size, kept in zip([*target[:2], *target[3:]], before, strict=True):
        if size != 1 and (is_op(repeat, "Tile") or size != kept):
            return None
    return target[2]


def untransposed(edit: Editor, value: onnx_ir.Value) -> onnx_ir.Value | None:
    """Keys [..., sequence, size] of ``value`` [..., size, sequence], if a Transpose made it; None if not.

    The Transpose may move the heads as well, and may stand between two Reshapes that join batch and heads and part
    them again (the way torch.onnx.export writes it since 2.5).
    """
    value = strip(value)
    node = value.producer()
    shape = dims(value)
    if is_op(node, "Reshape") and node is not None and node.inputs[0] is not None and shape is not None:
        turn = producer(strip(node.inputs[0]), "Transpose")
        if turn is None or attribute(turn, "perm") != [0, 2, 1] or turn.inputs[0] is None or len(shape) != 4:
            return None
        joined = producer(strip(turn.inputs[0]), "Reshape")
        source = None if joined is None or joined.inputs[0] is None else strip(joined.inputs[0])
        before = dims(source)
        if before is None or len(before) != 4:
            return None
        around = all(same(before[a], shape[b]) for a, b in ((0, 0), (1, 1), (2, 3), (3, 2)))
        flat = dims(turn.inputs[0])
        return source if around and flat is not None and same(flat[1], before[2]) else None
    if not is_op(node, "Transpose") or node is None or node.inputs[0] is None:
        return None
    perm = attribute(node, "perm")
    if perm is None or len(perm) not in (3, 4):
        return None
    order = [*perm[:-2], perm[-1], perm[-2]]
    if order == sorted(order):
        return node.inputs[0]
    return edit.op("Transpose", [node.inputs[0]], {"perm": order}, dtype=value.dtype)
