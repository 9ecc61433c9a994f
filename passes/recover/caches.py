"""Half of a table of cosines or sines whose two halves are equal."""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import attribute, dims, is_op, producer, rank, tensor_of
from ...ir.rewrite import Editor
from .match import ints, last_axis, scalar, strip

_UNARY = ("Cos", "Sin", "Cast", "Identity", "Neg")
_BINARY = ("Mul", "Div", "Add", "Sub")


def halve(edit: Editor, value: onnx_ir.Value, interleaved: bool) -> onnx_ir.Value | None:
    """``value`` with half of its last axis, where it is known to hold everything twice; None if that is not known.

    Args:
        edit: inserts what is computed again for the half; what precedes the doubling is shared.
        value: [..., size]; its halves are equal, or (``interleaved``) each element stands beside its copy.
        interleaved: which of the two.
    """
    value = strip(value)
    tensor = tensor_of(value)
    if tensor is not None:
        return _half_constant(edit, value, tensor, interleaved)
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None or rank(value) is None:
        return None
    doubled = _doubled(edit, node, interleaved)
    if doubled is not None:
        return doubled
    if is_op(node, *_BINARY):
        return _again(edit, node, [_half_operand(edit, v, interleaved) for v in node.inputs])
    if is_op(node, *_UNARY) or _keeps_last(node):
        return _again(edit, node, [halve(edit, node.inputs[0], interleaved), *node.inputs[1:]])
    return None


def _half_constant(
    edit: Editor, value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol, interleaved: bool
) -> onnx_ir.Value | None:
    array = np.asarray(tensor.numpy())
    if array.ndim == 0 or array.shape[-1] % 2:
        return None
    size = array.shape[-1] // 2
    first, second = (array[..., ::2], array[..., 1::2]) if interleaved else (array[..., :size], array[..., size:])
    if not np.array_equal(first, second):
        return None
    return edit.initializer(onnx_ir.Tensor(np.ascontiguousarray(first), dtype=tensor.dtype), f"{value.name}_half")


def _half_operand(edit: Editor, value: onnx_ir.Value | None, interleaved: bool) -> onnx_ir.Value | None:
    if value is None or scalar(value) is not None:
        return value
    shape = dims(value)
    return value if shape is not None and shape and shape[-1] == 1 else halve(edit, value, interleaved)


def _again(edit: Editor, node: onnx_ir.Node, inputs: list[onnx_ir.Value | None]) -> onnx_ir.Value | None:
    if any(v is None for v in inputs):
        return None
    attributes = {name: attribute(node, name) for name in node.attributes}
    return edit.op(node.op_type, inputs, attributes, dtype=node.outputs[0].dtype)


def _doubled(edit: Editor, node: onnx_ir.Node, interleaved: bool) -> onnx_ir.Value | None:
    """What ``node`` holds twice along its last axis."""
    source = node.inputs[0]
    assert source is not None
    if not interleaved:
        if (
            not is_op(node, "Concat")
            or len(node.inputs) != 2
            or not last_axis(node.outputs[0], attribute(node, "axis"))
        ):
            return None
        a, b = node.inputs
        return strip(a) if a is not None and b is not None and strip(a) is strip(b) else None
    if not is_op(node, "Reshape"):
        return None
    # repeat_interleave: each element beside its copy on a new last axis, then both axes become one.
    tiled = producer(strip(source), "Tile", "Expand")
    stacked = None if tiled is None or tiled.inputs[0] is None else producer(strip(tiled.inputs[0]), "Unsqueeze")
    size, shape, whole = rank(source), dims(source), dims(node.outputs[0])
    if tiled is None or stacked is None or size is None or shape is None or whole is None or len(whole) != size - 1:
        return None
    repeats, inner = ints(tiled.inputs[1]), stacked.inputs[0]
    axes = ints(stacked.inputs[1]) if len(stacked.inputs) > 1 else attribute(stacked, "axes")
    if repeats is None or axes is None or inner is None or repeats[-1] != 2 or any(r != 1 for r in repeats[:-1]):
        return None
    axes = sorted(a % size for a in axes)
    if axes[-1] != size - 1 or not (isinstance(whole[-1], int) and whole[-1] == 2 * _number(shape[-2])):
        return None
    return inner if len(axes) == 1 else edit.op("Unsqueeze", [inner, edit.ints(axes[:-1])], dtype=inner.dtype)


def _number(dim: int | onnx_ir.SymbolicDim) -> int:
    return dim if isinstance(dim, int) else 0


def _keeps_last(node: onnx_ir.Node) -> bool:
    """Whether ``node`` moves whole rows of its first input only, so that it commutes with halving them."""
    source = node.inputs[0]
    size = rank(source)
    if source is None or size is None:
        return False
    if is_op(node, "Unsqueeze", "Squeeze"):
        axes = ints(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
        total = size + (len(axes) if axes is not None and node.op_type == "Unsqueeze" else 0)
        return axes is not None and all(a % total != total - 1 for a in axes)
    if is_op(node, "Gather"):
        return size > 1 and not last_axis(source, attribute(node, "axis", 0))
    if is_op(node, "Transpose"):
        perm = attribute(node, "perm")
        return perm is not None and perm[-1] == size - 1
    if is_op(node, "Slice"):
        axes = ints(node.inputs[3]) if len(node.inputs) > 3 else None
        return axes is not None and not any(last_axis(source, a) for a in axes)
    if is_op(node, "Expand"):
        target = ints(node.inputs[1])
        return target is not None and target[-1] == 1
    return False
