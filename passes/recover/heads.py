"""Key and value heads that were repeated for grouped queries, before they were."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import attribute, dims, is_op, producer
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
