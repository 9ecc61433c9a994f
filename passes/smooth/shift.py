"""Shifting of channels: what a layer normalization subtracts more, the biases behind it add again."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir

from ...ir.graph import attribute, is_op, tensor_of
from ...ir.rewrite import Editor
from .fold import replace_constant
from .groups import Group
from .products import Array


def obstacle(group: Group) -> str | None:
    """Why the values of a group cannot be shifted without a new operator before its products, or None."""
    if not is_op(group.node, "LayerNormalization") or len(group.node.inputs) < 3 or group.node.inputs[2] is None:
        return "no layer normalization with a bias makes them"
    out = group.node.outputs[0]
    products = {consumer.node for consumer in group.consumers}
    for use in out.uses():
        if use.node not in products:
            return f"{use.node.op_type} reads them, too"
    if out.is_graph_output():
        return "they are an output of the model"
    for consumer in group.consumers:
        if consumer.input is not out:
            return "they pass other operators before a product"
        if is_op(consumer.node, "Gemm") and (
            attribute(consumer.node, "alpha", 1.0) != 1.0 or attribute(consumer.node, "beta", 1.0) != 1.0
        ):
            return "a Gemm scales its bias"
    return None


def shift(edit: Editor, group: Group, middles: Array) -> int:
    """Subtract ``middles`` [channels] from the group's values and let its products add ``W z`` (survey, eq. 13).

    A product whose result a constant is added to takes it up there; another one gets a bias. The outputs of the model
    stay what they are.

    Returns:
        The number of operators added.
    """
    z = np.asarray(middles, np.float32)
    added = 0
    for consumer in group.consumers:
        bias = consumer.matrix.read() @ z
        if (place := _bias(consumer.node, len(bias))) is not None:
            reader, index = place
            replace_constant(edit, reader, index, functools.partial(_plus, bias))
            continue
        added += _add(edit, consumer.node, bias)
    replace_constant(edit, group.node, 2, functools.partial(_plus, -z))
    return added


def _plus(vector: Array, constant: Array) -> Array:
    total: Array = constant + vector.reshape(constant.shape)
    return total


def _bias(node: onnx_ir.Node, size: int) -> tuple[onnx_ir.Node, int] | None:
    """Reader and input index of the constant vector that is added to the result of a product."""
    if is_op(node, "Gemm"):
        return (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or not is_op(uses[0].node, "Add"):
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    tensor = tensor_of(add.inputs[index])
    return (add, index) if tensor is not None and list(tensor.shape.numpy()) == [size] else None


def _add(edit: Editor, node: onnx_ir.Node, bias: Array) -> int:
    out = node.outputs[0]
    dtype = out.dtype
    assert dtype is not None
    value = edit.initializer(bias.astype(dtype.numpy()), f"{node.name or 'product'}.shift")
    if is_op(node, "Gemm"):
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        return 0
    following = list(edit.scope)[list(edit.scope).index(node) + 1 :]
    edit.at(following[0] if following else None, [node])
    new = edit.op("Add", [out, value], dtype=out.dtype, shape=out.shape, hint=f"{node.name or 'product'}.shifted")
    edit.replace(out, new)
    return 1
