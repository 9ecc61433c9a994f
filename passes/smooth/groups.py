"""Smoothing groups: a producer that can divide a value channel by channel, and products that can take the scale up.

Groups are found by following the value, never by the names of modules: normalization -> products, product -> attention
-> product, product -> (multiplied by a gate) -> product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, is_op, module_path, rank, tensor_of
from .flow import UNSCALED, Block, Consumer, Vector, Walk
from .products import FLOATS, Array, Matrix, matrix

_NORMS = ("RMSNormalization", "LayerNormalization")


@dataclass(frozen=True)
class Group:
    """Channels that one positive scale each can move from a producer's output into the weights behind it.

    Attributes:
        node: the producer: a normalization or a product.
        size: channels of its output.
        free: which of them may be scaled: bool [size].
        vectors: constants to divide: the weight and bias of a normalization, biases.
        matrix: the weights of a producing product, whose output channels are divided; None for a normalization.
        consumers: products whose input channels are multiplied.
    """

    node: onnx_ir.Node
    size: int
    free: Array
    vectors: tuple[Vector, ...]
    matrix: Matrix | None
    consumers: tuple[Consumer, ...]

    @property
    def inputs(self) -> list[onnx_ir.Value]:
        """The distinct values that the consumers multiply."""
        return list(dict.fromkeys(consumer.input for consumer in self.consumers))


@dataclass(frozen=True)
class Found:
    """What a graph offers for smoothing.

    Attributes:
        groups: in graph order; a product takes a scale from one group at most.
        others: products by constant matrices that are in no group, each with what stands in the way.
    """

    groups: list[Group]
    others: list[tuple[onnx_ir.Node, Block]]


@dataclass(frozen=True)
class _Producer:
    node: onnx_ir.Node
    size: int
    vectors: tuple[Vector, ...] = ()
    matrix: Matrix | None = None


def find(graph: Graph) -> Found:
    """Look for groups in the main graph."""
    order = {node: i for i, node in enumerate(graph.graph)}
    products = [node for node in order if matrix(node) is not None]
    taken: set[onnx_ir.Node] = set()
    blocked: dict[onnx_ir.Node, Block] = {}
    groups = []
    for node in order:
        producer = _norm(node) or _linear(node)
        if producer is None:
            continue
        walk = Walk(node.outputs[0], producer.size, order)
        if producer.matrix is not None and producer.matrix.shared is not None:
            reason = f"the weight of the product before it is shared with {producer.matrix.shared}"
            walk.blocks.append(Block(np.arange(producer.size), reason, module_path(node)))
        free = walk.free
        inside = [consumer for consumer in walk.consumers if _touches(consumer, free)]
        if inside and not any(consumer.node in taken for consumer in inside):
            taken.update(consumer.node for consumer in inside)
            vectors = (*producer.vectors, *walk.vectors)
            groups.append(Group(node, producer.size, free, vectors, producer.matrix, tuple(inside)))
        for consumer in walk.consumers:
            block = walk.why_not(consumer.labels)
            if block is not None:
                blocked.setdefault(consumer.node, block)
    nothing = Block(np.empty(0, int), "no normalization or product before it can take the scale of its input", "")
    others = [(node, blocked.get(node, nothing)) for node in products if node not in taken]
    return Found(groups, others)


def _touches(consumer: Consumer, free: Array) -> bool:
    labels = consumer.labels
    return bool(free[labels[labels != UNSCALED]].any())


def _norm(node: onnx_ir.Node) -> _Producer | None:
    """A normalization over the last axis with constant weight and bias."""
    if not is_op(node, *_NORMS) or rank(node.outputs[0]) is None:
        return None
    if attribute(node, "axis", -1) not in (-1, (rank(node.inputs[0]) or 0) - 1):
        return None
    size = _numbers(node.inputs[1])
    operands = [i for i in range(1, len(node.inputs)) if node.inputs[i] is not None]
    if size is None or any(_numbers(node.inputs[i]) != size for i in operands):
        return None
    return _Producer(node, size, tuple(Vector(node, i, np.arange(size)) for i in operands))


def _linear(node: onnx_ir.Node) -> _Producer | None:
    """A product by a constant matrix, with a constant bias if it is a ``Gemm`` with one."""
    found = matrix(node)
    if found is None or rank(node.outputs[0]) is None:
        return None
    size = found.channels[0]
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return _Producer(node, size, (), found)
    if _numbers(node.inputs[2]) != size:
        return None
    return _Producer(node, size, (Vector(node, 2, np.arange(size)),), found)


def _numbers(value: onnx_ir.Value | None) -> int | None:
    """Size of a constant float vector (axes of size 1 before it allowed); None if ``value`` is none."""
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in FLOATS:
        return None
    shape = tensor.shape.numpy()
    return int(shape[-1]) if shape and math.prod(shape) == shape[-1] else None
