"""Keys and values as integers with fixed scales, and the operators that go there and back.

A key or value x of one channel becomes ``q = clip(round(x / s))`` with the scale ``s = max |x| / qmax`` of that channel
(survey, equation 3, symmetric; channels as KIVI found for keys, Liu et al. 2024, section 3.1). Eight bits are kept as
int8; four bits two to a byte, ``(q + 8)`` of even channels in the low half, as ``GroupQueryAttention`` keeps them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from ...ir.rewrite import Editor

Array = np.ndarray[Any, Any]

LARGEST = {8: 127, 4: 7}
"""Largest code by bits."""
_TINY = np.finfo(np.float32).tiny


def cache_scales(largest: Array, bits: int, granularity: str) -> Array:
    """Scales of a cache.

    Args:
        largest: max |x| of each channel of each head, [heads, size].
        bits: 8 or 4.
        granularity: ``channel``, or ``tensor`` for one scale.

    Returns:
        [1, heads, 1, size] float32; all the same for ``tensor``.
    """
    if granularity == "tensor":
        largest = np.full_like(largest, largest.max())
    scales = np.maximum(largest / LARGEST[bits], _TINY)
    return np.asarray(scales, np.float32)[None, :, None, :]


def restored(edit: Editor, codes: onnx_ir.Value, scales: Array, bits: int, name: str) -> onnx_ir.Value:
    """Insert what makes float32 [batch, heads, length, size] of codes."""
    if bits == 8:
        one = edit.initializer(np.asarray(1, np.float32), "one")
        plain = edit.op("DequantizeLinear", [codes, one])
    else:
        mask, shift = (edit.initializer(np.asarray(value, np.uint8), "nibble") for value in (15, 4))
        last = edit.ints([-1], "axis")
        low = edit.op("Unsqueeze", [edit.op("BitwiseAnd", [codes, mask]), last])
        high = edit.op("Unsqueeze", [edit.op("BitShift", [codes, shift], {"direction": "RIGHT"}), last])
        pairs = edit.op("Concat", [low, high], {"axis": -1})
        # The sizes by name: the middle may be empty, where 0 and -1 would be ambiguous.
        shape = edit.op("Concat", [edit.op("Shape", [codes], {"end": 3}), edit.ints([scales.shape[-1]])], {"axis": 0})
        flat = edit.op("Reshape", [pairs, shape], {"allowzero": 1})
        plain = edit.op("Cast", [flat], {"to": int(onnx_ir.DataType.FLOAT)})
        plain = edit.op("Sub", [plain, edit.initializer(np.asarray(8, np.float32), "middle")])
    return edit.op("Mul", [plain, edit.initializer(scales, f"{name}.scale")], hint=f"{name}.restored")


def rounded(edit: Editor, value: onnx_ir.Value, scales: Array, bits: int, name: str) -> onnx_ir.Value:
    """Insert what makes codes of float32 [batch, heads, length, size]."""
    scaled = edit.op("Mul", [value, edit.initializer(1 / scales, f"{name}.inverse_scale")])
    if bits == 8:
        one = edit.initializer(np.asarray(1, np.float32), "one")
        zero = edit.initializer(np.asarray(0, np.int8), "zero")
        return edit.op("QuantizeLinear", [scaled, one, zero], hint=f"{name}.codes")
    ends = [edit.initializer(np.asarray(limit, np.float32), "limit") for limit in (-8, 7)]
    whole = edit.op("Clip", [edit.op("Round", [scaled]), *ends])
    whole = edit.op("Add", [whole, edit.initializer(np.asarray(8, np.float32), "middle")])
    codes = edit.op("Cast", [whole], {"to": int(onnx_ir.DataType.UINT8)})
    axes, one, end = edit.ints([3], "axis"), edit.ints([2], "step"), edit.ints([scales.shape[-1]], "end")
    low = edit.op("Slice", [codes, edit.ints([0]), end, axes, one])
    high = edit.op("Slice", [codes, edit.ints([1]), end, axes, one])
    shift = edit.initializer(np.asarray(4, np.uint8), "nibble")
    high = edit.op("BitShift", [high, shift], {"direction": "LEFT"})
    return edit.op("BitwiseOr", [low, high], hint=f"{name}.codes")
