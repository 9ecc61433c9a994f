"""What an exporter left behind a convolution and belongs inside it: a bias, a scale of channels, a batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import attribute, is_op, tensor_of
from .match import FLOATS, Site, nodes

Array = np.ndarray[Any, Any]


def recover_convolution(site: Site) -> None:
    """Fold constants that act on each output channel into the weights and the bias of the convolution before them.

    ``conv(x) + c`` becomes a bias; ``conv(x) * s`` and a batch normalization in inference scale the weights, too
    (Jacob et al. 2018, section 3.2). Products are computed in float64 and rounded once.
    """
    for node in nodes(site.graph, "Conv", "ConvTranspose"):
        while node.graph is not None:
            folded = _fold(site, node)
            if folded is None:
                break
            node = folded


def _fold(site: Site, node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The convolution with what reads it folded in, or None if nothing can be."""
    weight, out = tensor_of(node.inputs[1]), node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.dtype not in FLOATS or (bias is not None and tensor_of(bias) is None):
        return None
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output() or uses[0].node.graph is not node.graph:
        return None
    reader = uses[0].node
    rank = len(weight.shape)
    transposed = node.op_type == "ConvTranspose"
    groups = attribute(node, "group", 1)
    n = int(weight.shape.numpy()[1]) * groups if transposed else int(weight.shape.numpy()[0])
    found = _per_channel(reader, uses[0].idx, n, rank)
    if found is None:
        return None
    scale, shift = found
    if scale is not None and len(node.inputs[1].uses() if node.inputs[1] else ()) > 1:
        return None  # another reader
    before = tensor_of(bias)
    old = np.zeros(n) if before is None else before.numpy().astype(np.float64)
    dtype = weight.dtype.numpy()
    edit = site.edit(f"{reader.op_type} => {node.op_type}", reader, [node, reader])
    inputs = [node.inputs[0], node.inputs[1]]
    if scale is not None:
        array = weight.numpy().astype(np.float64) * _along_channels(scale, weight, groups, transposed)
        inputs[1] = edit.initializer(array.astype(dtype), f"{node.name or 'conv'}.weight")
        old = old * scale
    name = f"{node.name or 'conv'}.bias"
    inputs.append(edit.initializer((old + shift).astype(dtype), name))
    attributes = {key: attribute(node, key) for key in node.attributes}
    result = reader.outputs[0]
    new = edit.op(node.op_type, inputs, attributes, dtype=result.dtype, shape=result.shape, hint=node.name)
    site.finish(edit, result, new, f"{reader.op_type} into {node.op_type}")
    return new.producer()


def _along_channels(scale: Array, weight: onnx_ir.TensorProtocol, groups: int, transposed: bool) -> Array:
    """``scale`` [n] in the shape that multiplies a weight: [n, in / groups, ...], transposed [in, n / groups, ...]."""
    ones = [1] * (len(weight.shape) - 2)
    if not transposed:
        return scale.reshape(-1, 1, *ones)
    rows = int(weight.shape.numpy()[0]) // groups
    return np.repeat(scale.reshape(groups, -1), rows, axis=0).reshape(rows * groups, -1, *ones)


def _per_channel(reader: onnx_ir.Node, index: int, n: int, rank: int) -> tuple[Array | None, Array] | None:
    """What a node multiplies each channel by (None: nothing) and adds to it, float64 [n]; None if it does more."""
    if is_op(reader, "Add", "Mul", "Sub"):
        vector = _vector(reader.inputs[1 - index], n, rank)
        if vector is None or (is_op(reader, "Sub") and index):
            return None
        if is_op(reader, "Mul"):
            return vector, np.zeros(n)
        return None, -vector if is_op(reader, "Sub") else vector
    if is_op(reader, "BatchNormalization") and index == 0 and not attribute(reader, "training_mode", 0):
        parts = [_vector(value, n, 1) for value in reader.inputs[1:5]]
        if any(part is None for part in parts) or len([v for v in reader.outputs if v.uses()]) > 1:
            return None
        gamma, beta, mean, variance = (np.asarray(part) for part in parts)
        scale = gamma / np.sqrt(variance + attribute(reader, "epsilon", 1e-5))
        return scale, beta - mean * scale
    return None


def _vector(value: onnx_ir.Value | None, n: int, rank: int) -> Array | None:
    """A constant with one number for each of ``n`` channels of a tensor of ``rank`` axes, or one for all; float64."""
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in FLOATS or len(tensor.shape) > rank:
        return None
    shape = [int(d) for d in tensor.shape.numpy()]
    if tensor.size == 1:
        return np.full(n, float(tensor.numpy().reshape(-1)[0]), np.float64)
    channel = len(shape) - rank + 1 if rank > 1 else 0
    if tensor.size != n or channel < 0 or shape[channel] != n:
        return None
    vector: Array = tensor.numpy().reshape(-1).astype(np.float64)
    return vector
