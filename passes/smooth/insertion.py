"""Scales that no producer can take: one multiplication before the products that read a value takes them.

Behind a GELU no operator can divide channels, and what a normalization makes in a post-norm encoder is read by the
residual, too. A multiplication costs a run over the value, far less than a scale for each token does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import dims, tensor_of
from ...ir.rewrite import Editor
from .flow import Consumer
from .fold import fold
from .groups import Found, Group
from .products import Array, matrix


def candidates(found: Found) -> list[Group]:
    """A group for each value that products in no group read, without a producer: their own weights, all channels.

    Only float32: nothing else is quantized on its way into a product.
    """
    readers: dict[onnx_ir.Value, list[Consumer]] = {}
    for node, _ in found.others:
        product, value = matrix(node), node.inputs[0]
        if product is None or product.shared is not None or value is None:
            continue
        shape, size = dims(value), product.channels[1]
        if shape and shape[-1] == size and value.dtype is onnx_ir.DataType.FLOAT and tensor_of(value) is None:
            readers.setdefault(value, []).append(Consumer(node, product, np.arange(size)))
    return [
        Group(consumers[0].node, size, np.ones(size, bool), (), None, tuple(consumers))
        for consumers in readers.values()
        for size in [consumers[0].labels.size]
    ]


def insert(edit: Editor, group: Group, scales: Array) -> None:
    """Multiply what the group's products read by ``1 / scales`` and their input channels by ``scales``.

    Args:
        edit: edits the graph of the group.
        group: one of :func:`candidates`.
        scales: positive, float32 [group.size].
    """
    fold(edit, group, scales)
    nodes = [consumer.node for consumer in group.consumers]
    value = group.consumers[0].input
    edit.at(nodes[0], nodes)
    factors = edit.initializer(1 / scales, f"{value.name}.smooth")
    smooth = edit.op("Mul", [value, factors], dtype=value.dtype, shape=value.shape, hint=f"{value.name}.smoothed")
    for node in nodes:
        node.replace_input_with(0, smooth)
