"""Where the channels of a value go: which readers can take a scale of each channel, and which cannot.

A value is divided by a positive scale per channel; every operator that it flows through must either pass the scale on
or take it up. Products by constant matrices take it up in their input channels, added constants are divided with it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import attribute, constant, dims, is_op, module_path, rank, tensor_of
from ...ir.traits import Kind, kind
from .products import Array, Matrix, matrix

UNSCALED = -1
"""Label of a channel that does not come from the walked value."""


@dataclass(frozen=True)
class Channels:
    """Which channel of the walked value each place of another value comes from.

    Attributes:
        axes: the axes over which channels differ, ascending.
        labels: the channel, or ``UNSCALED``, for each place along these axes: int64 of their sizes.
    """

    axes: tuple[int, ...]
    labels: Array


@dataclass(frozen=True)
class Consumer:
    """A product whose input channels can take the scale.

    Attributes:
        node: ``MatMul`` or ``Gemm``.
        matrix: its weights.
        labels: the walked value's channel behind each input channel [K].
    """

    node: onnx_ir.Node
    matrix: Matrix
    labels: Array

    @property
    def input(self) -> onnx_ir.Value:
        """What is multiplied."""
        value = self.node.inputs[0]
        assert value is not None
        return value


@dataclass(frozen=True)
class Vector:
    """A constant that the scale must divide: a bias.

    Attributes:
        node: its reader.
        index: which input of the reader it is.
        labels: the walked value's channel behind each place of its last axis.
    """

    node: onnx_ir.Node
    index: int
    labels: Array


@dataclass(frozen=True)
class Block:
    """Why some channels cannot be scaled: ``labels`` are theirs, ``reader`` stands in the way."""

    labels: Array
    reason: str
    reader: str


@dataclass
class Walk:
    """All that reads ``start``, whose last axis holds ``size`` channels, directly or through operators.

    Attributes:
        start: the value to scale.
        size: its channels.
        order: position of each node of the main graph.
        consumers: products reached.
        vectors: constants that are to be scaled along.
        blocks: readers in the way; the walk goes on behind those where a consumer may follow, to tell it why.
    """

    start: onnx_ir.Value
    size: int
    order: Mapping[onnx_ir.Node, int]
    consumers: list[Consumer] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        dimensions = rank(self.start)
        assert dimensions is not None
        self._known: dict[onnx_ir.Value, Channels] = {}
        self._waiting: list[tuple[int, onnx_ir.Node]] = []
        self._seen: set[onnx_ir.Node] = set()
        self._blocked = np.zeros(self.size, bool)
        self.reach(self.start, Channels((dimensions - 1,), np.arange(self.size)))
        while self._waiting:
            self._visit(heapq.heappop(self._waiting)[1])

    @property
    def free(self) -> Array:
        """Which channels reach a consumer and nothing that is in the way: bool [size]."""
        free = np.zeros(self.size, bool)
        for consumer in self.consumers:
            free[_real(consumer.labels)] = True
        for block in self.blocks:
            free[_real(block.labels)] = False
        return free

    def why_not(self, labels: Array) -> Block | None:
        """What first stands in the way of one of these channels."""
        return next((block for block in self.blocks if np.isin(_real(labels), block.labels).any()), None)

    def reach(self, value: onnx_ir.Value, channels: Channels) -> None:
        """Go on at ``value``."""
        self._known[value] = channels
        if value.is_graph_output():
            self.block(channels, "it is an output of the model", value.name or "")
        for use in value.uses():
            node = use.node
            if node not in self.order:
                self.block(channels, f"{node.op_type} inside a subgraph reads it", module_path(node))
            elif node not in self._seen:
                self._seen.add(node)
                heapq.heappush(self._waiting, (self.order[node], node))

    def block(self, channels: Channels, reason: str, reader: str) -> None:
        """Channels that cannot be scaled."""
        self._blocked[_real(channels.labels)] = True
        self.blocks.append(Block(channels.labels.reshape(-1), reason, reader))

    def _visit(self, node: onnx_ir.Node) -> None:
        known = [(i, self._known[v]) for i, v in enumerate(node.inputs) if v is not None and v in self._known]
        # Channels that are blocked already are not scaled: to the others they are like any other operand.
        moving = [(i, c) for i, c in known if not self._blocked[_real(c.labels)].all()]
        rule = _RULES.get(node.op_type) if is_op(node, node.op_type) else None
        if rule is _attention:
            for i, channels in known:
                reason = rule(self, node, i, channels)
                if reason is not None:
                    self.block(channels, reason, module_path(node))
            return
        if len(moving) > 1 or (len(known) > 1 and not moving):
            reason = f"{node.op_type} reads it twice"
        elif rule is not None:
            reason = rule(self, node, *(moving or known)[0])
        elif kind(node) is Kind.ELEMENTWISE:
            reason = f"{node.op_type} is not homogeneous"
        else:
            reason = f"{node.op_type} reads it, which is no product"
        if reason is None:
            return
        for _, channels in moving:
            self.block(channels, reason, module_path(node))
        rest = [v for v in node.inputs if v is not None and v not in self._known and tensor_of(v) is None]
        out = node.outputs[0]
        if kind(node) is Kind.ELEMENTWISE and not rest and rank(out) == rank(node.inputs[known[0][0]]):
            self.reach(out, known[0][1])


def spread(scales: Array, labels: Array) -> Array:
    """The scale of each labelled place: 1 for those that are not scaled."""
    spread_out: Array = np.where(labels == UNSCALED, np.float32(1), scales[labels])
    return spread_out


def _real(labels: Array) -> Array:
    real: Array = labels[labels != UNSCALED]
    return real


_Rule = Callable[[Walk, onnx_ir.Node, int, Channels], "str | None"]
"""Continues a walk behind a node that reads labelled channels at one input, or says why that cannot be."""


def _product(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    out, dimensions = node.outputs[0], rank(node.inputs[index])
    assert dimensions is not None
    if index == 1 and is_op(node, "MatMul") and rank(out) == dimensions and dimensions - 2 not in channels.axes:
        # Attention taken apart: probabilities times values.
        return _pass_on(walk, out, channels)
    if index != 0 or channels.axes != (dimensions - 1,):
        return f"{node.op_type} does not sum over its channels"
    found = matrix(node)
    if found is None:
        return "its product is by no constant matrix"
    walk.consumers.append(Consumer(node, found, channels.labels))
    if found.shared is not None:
        return f"the weight of its product is shared with {found.shared}"
    return None


def _pass_on(walk: Walk, out: onnx_ir.Value, channels: Channels) -> str | None:
    shape = dims(out)
    if shape is None or any(shape[a] != n for a, n in zip(channels.axes, channels.labels.shape, strict=True)):
        return "the shape of what is computed from it is not known"
    walk.reach(out, channels)
    return None


def _same(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    return _pass_on(walk, node.outputs[0], channels)


def _scaled(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    """Mul, and Div of it: linear in this operand, whatever the other one is."""
    if is_op(node, "Div") and index == 1:
        return "Div by it is not homogeneous"
    return _shifted(walk, node, index, channels)


def _shifted(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    before, after = rank(node.inputs[index]), rank(node.outputs[0])
    if before is None or after is None:
        return f"the shape of what {node.op_type} computes is not known"
    moved = tuple(axis + after - before for axis in channels.axes)
    return _pass_on(walk, node.outputs[0], Channels(moved, channels.labels))


def _added(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    """Add and Sub: of a constant for each channel, which is scaled along."""
    tensor = tensor_of(node.inputs[1 - index])
    if tensor is None:
        return f"{node.op_type} combines it with another value"
    shape, dimensions = tensor.shape.numpy(), rank(node.inputs[index])
    size = channels.labels.shape[-1]
    if dimensions is None or channels.axes != (dimensions - 1,) or shape[-1:] != (size,) or math.prod(shape) != size:
        return f"the constant of {node.op_type} is not one number a channel"
    walk.vectors.append(Vector(node, 1 - index, channels.labels))
    return _shifted(walk, node, index, channels)


def _transpose(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    dimensions = rank(node.inputs[0])
    assert dimensions is not None
    perm = attribute(node, "perm", list(range(dimensions))[::-1])
    moved = [perm.index(axis) for axis in channels.axes]
    turn = sorted(range(len(moved)), key=moved.__getitem__)
    return _pass_on(walk, node.outputs[0], Channels(tuple(sorted(moved)), channels.labels.transpose(turn)))


def _reshape(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    """Splits or joins the channel axes, if these are the last ones."""
    before, after = rank(node.inputs[0]), dims(node.outputs[0])
    if index != 0 or before is None or after is None:
        return "a Reshape moves its channels"
    trailing = tuple(range(before - len(channels.axes), before))
    at, size = len(after), 1
    while at > 0 and size < channels.labels.size:
        at -= 1
        dim = after[at]
        if not isinstance(dim, int):
            break
        size *= dim
    if channels.axes != trailing or size != channels.labels.size:
        return "a Reshape moves its channels"
    shape = [d for d in after[at:] if isinstance(d, int)]
    return _pass_on(walk, node.outputs[0], Channels(tuple(range(at, len(after))), channels.labels.reshape(shape)))


def _split(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    dimensions = rank(node.inputs[0])
    assert dimensions is not None
    axis = attribute(node, "axis", 0) % dimensions
    parts, start = [], 0
    for out in node.outputs:
        size = None if out.shape is None else out.shape[axis]
        if axis not in channels.axes and size is not None:
            parts.append(channels.labels)
        elif isinstance(size, int):
            parts.append(np.take(channels.labels, range(start, start + size), channels.axes.index(axis)))
            start += size
        else:
            return "the sizes of a Split are not known"
    for out, labels in zip(node.outputs, parts, strict=True):
        walk.reach(out, Channels(channels.axes, labels))
    return None


def _slice(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    dimensions = rank(node.inputs[0])
    axes = constant(node.inputs[3], limit=16) if len(node.inputs) > 3 else None
    if index != 0 or dimensions is None or axes is None:
        return "the axes of a Slice are not known"
    if any(int(axis) % dimensions in channels.axes for axis in axes):
        return "a Slice divides its channels"
    return _pass_on(walk, node.outputs[0], channels)


def _gather(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    dimensions, indices = rank(node.inputs[0]), rank(node.inputs[1])
    if index != 0 or dimensions is None or indices is None:
        return "Gather reads it, which is no product"
    axis = attribute(node, "axis", 0) % dimensions
    if axis in channels.axes:
        return "a Gather selects channels"
    moved = tuple(a + indices - 1 if a > axis else a for a in channels.axes)
    return _pass_on(walk, node.outputs[0], Channels(moved, channels.labels))


def _attention(walk: Walk, node: onnx_ir.Node, index: int, channels: Channels) -> str | None:
    """Linear in its values; each of their heads serves one or more heads of queries."""
    if index != 2:
        return "Attention compares it with other values"
    heads = _heads(node)
    if heads is None:
        return "the heads of an Attention are not known"
    queries, values = heads
    if channels.axes == (2,) and rank(node.inputs[2]) == 3:
        labels = channels.labels.reshape(values, -1)
    elif channels.axes == (1, 3):
        labels = channels.labels
    elif channels.axes == (3,):
        labels = np.broadcast_to(channels.labels, (values, channels.labels.size))
    else:
        return "Attention does not keep its channels apart"
    labels = np.repeat(labels, queries // values, axis=0)
    out = node.outputs[0]
    onward = Channels((1, 3), labels) if rank(out) == 4 else Channels((2,), labels.reshape(-1))
    cached = len(node.inputs) > 5 and node.inputs[5] is not None
    present = node.outputs[2] if len(node.outputs) > 2 else None
    if cached or (present is not None and (present.is_graph_output() or present.uses())):
        walk.block(channels, "Attention keeps it in a cache outside the model", module_path(node))
    return _pass_on(walk, out, onward)


def _heads(node: onnx_ir.Node) -> tuple[int, int] | None:
    """Heads of queries and of values."""
    if rank(node.inputs[2]) == 3:
        pair: tuple[Any, Any] = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    else:
        query, value = dims(node.inputs[0]), dims(node.inputs[2])
        if query is None or value is None or len(query) != 4 or len(value) != 4:
            return None
        pair = query[1], value[1]
    return (pair[0], pair[1]) if isinstance(pair[0], int) and isinstance(pair[1], int) and pair[1] else None


_RULES: dict[str, _Rule] = {
    "MatMul": _product,
    "Gemm": _product,
    **dict.fromkeys(("Identity", "Neg", "Abs", "Relu", "LeakyRelu"), _same),
    **dict.fromkeys(("Mul", "Div"), _scaled),
    **dict.fromkeys(("Add", "Sub"), _added),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Attention": _attention,
}
