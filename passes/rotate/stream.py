"""Residual streams: values of the same channels that are only added to each other, and what writes and reads them.

A stream can be rotated if everything that makes a value of it can rotate its output channels (a product by a constant
matrix, an embedding), and everything that reads one can take the rotation back in its input channels (a product by a
constant matrix, also behind a normalization, whose own weight moves into the product first).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, constant, is_op, module_path, rank, tensor_of
from ..smooth.products import FLOATS, Matrix, matrix

Array = np.ndarray[Any, Any]
NORMS = ("RMSNormalization", "LayerNormalization")


@dataclass(frozen=True)
class Norm:
    """A normalization that reads the stream.

    Attributes:
        node: the node.
        products: products by constant matrices that read its output; its weight and the rotation move into them.
        heads: products by a table of the stream, which is rotated already: they get the weight by a product before.
    """

    node: onnx_ir.Node
    products: tuple[tuple[onnx_ir.Node, Matrix], ...]
    heads: tuple[onnx_ir.Node, ...]

    @property
    def gain(self) -> Array:
        """Its weight: float64 [channels]."""
        value = constant(self.node.inputs[1])
        assert value is not None
        return np.asarray(value, np.float64).reshape(-1)


@dataclass
class Stream:
    """A connected set of values.

    Attributes:
        size: channels.
        values: all of it.
        writers: products by constant matrices that write it.
        tables: ``Gather`` nodes that write rows of a constant table.
        vectors: (reader, input index) of constants of one number a channel that are added to it.
        norms: normalizations that read it.
        readers: products by constant matrices that read it as it is.
        obstacle: (what stands in the way, node), or None.
    """

    size: int
    values: dict[onnx_ir.Value, None] = field(default_factory=dict)
    writers: list[tuple[onnx_ir.Node, Matrix]] = field(default_factory=list)
    tables: list[onnx_ir.Node] = field(default_factory=list)
    vectors: list[tuple[onnx_ir.Node, int]] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    readers: list[tuple[onnx_ir.Node, Matrix]] = field(default_factory=list)
    obstacle: tuple[str, str] | None = None

    @property
    def centered(self) -> bool:
        """Whether a normalization subtracts the mean of the channels, which the rotation then has to keep."""
        return any(is_op(norm.node, "LayerNormalization") for norm in self.norms)

    def block(self, reason: str, node: onnx_ir.Node | None) -> None:
        """Something stands in the way; the first reason is kept."""
        self.obstacle = self.obstacle or (reason, "" if node is None else module_path(node))


def find(graph: Graph) -> list[Stream]:
    """The streams that normalizations of the main graph read, in graph order."""
    streams: list[Stream] = []
    seen: set[onnx_ir.Value] = set()
    inner = {node for node in graph.graph}
    for node in graph.graph:
        if not is_op(node, *NORMS) or (value := node.inputs[0]) is None or value in seen:
            continue
        size = value.shape[-1] if value.shape is not None and len(value.shape) else None
        if not isinstance(size, int) or size < 2:
            continue
        stream = _follow(value, size, inner)
        seen.update(stream.values)
        streams.append(stream)
    return streams


def _follow(start: onnx_ir.Value, size: int, inner: set[onnx_ir.Node]) -> Stream:
    stream = Stream(size)
    waiting = [start]
    norms: list[onnx_ir.Node] = []
    while waiting and stream.obstacle is None:
        value = waiting.pop()
        if value in stream.values:
            continue
        stream.values[value] = None
        if value.shape is None or not len(value.shape) or value.shape[-1] != size:
            stream.block("its channels change their number", value.producer())
        elif value.is_graph_output():
            stream.block("it is an output of the model", value.producer())
        else:
            waiting += _made(stream, value)
            for use in value.uses():
                if use.node not in inner:
                    stream.block(f"{use.node.op_type} inside a subgraph reads it", use.node)
                elif is_op(use.node, *NORMS) and use.idx == 0:
                    norms.append(use.node)
                else:
                    waiting += _read(stream, use.node, use.idx)
    shared = {node.inputs[0] for node in stream.tables}
    for node in norms:
        if stream.obstacle is None:
            _norm(stream, node, shared)
    heads = [node for norm in stream.norms for node in norm.heads]
    for node in stream.tables:
        _table(stream, node, heads)
    return stream


def _made(stream: Stream, value: onnx_ir.Value) -> list[onnx_ir.Value]:
    """Records the writer of a value; the values of the stream that it is computed from."""
    node = value.producer()
    if node is None:
        stream.block("it is an input of the model", None)
        return []
    if is_op(node, "Add", "Sub"):
        return _operands(stream, node)
    if is_op(node, "Mul", "Div") and (index := _scaled(node)) is not None:
        operand = node.inputs[index]
        return [] if operand is None else [operand]
    if is_op(node, "Gather") and attribute(node, "axis", 0) in (0, -2):
        tensor = tensor_of(node.inputs[0])
        if tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) == 2:
            if node not in stream.tables:
                stream.tables.append(node)
            return []
    found = matrix(node)
    if found is None:
        stream.block(f"{node.op_type} makes it, which is no product by a constant matrix", node)
    elif found.shared is not None:
        stream.block(f"the weight of a product that makes it is shared with {found.shared}", node)
    elif len(node.inputs) > 2 and node.inputs[2] is not None and not _vector(node.inputs[2], stream.size):
        stream.block("the bias of a product that makes it is not one number a channel", node)
    else:
        stream.writers.append((node, found))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            stream.vectors.append((node, 2))
    return []


def _read(stream: Stream, node: onnx_ir.Node, index: int) -> list[onnx_ir.Value]:
    """Records a reader other than a normalization; the values of the stream that it computes."""
    if is_op(node, "Add", "Sub"):
        return [*_operands(stream, node), node.outputs[0]]
    if is_op(node, "Mul", "Div") and _scaled(node) == index:
        return [node.outputs[0]]
    found = matrix(node) if index == 0 else None
    if found is None:
        stream.block(f"{node.op_type} reads it, which is no product by a constant matrix", node)
    elif found.shared is not None:
        stream.block(f"the weight of a product that reads it is shared with {found.shared}", node)
    elif all(node is not known for known, _ in stream.readers):
        stream.readers.append((node, found))
    return []


def _operands(stream: Stream, node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Operands of an addition that belong to the stream; a constant one is a vector to rotate."""
    found = []
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if tensor_of(value) is None:
            found.append(value)
        elif not _vector(value, stream.size):
            stream.block(f"the constant of {node.op_type} is not one number a channel", node)
        elif (node, index) not in stream.vectors:
            stream.vectors.append((node, index))
    return found


def _scaled(node: onnx_ir.Node) -> int | None:
    """Which operand of a product by one constant number is the other one."""
    for index in (0, 1) if is_op(node, "Mul") else (0,):
        tensor = tensor_of(node.inputs[1 - index])
        if tensor is not None and tensor.size == 1 and rank(node.inputs[index]) == rank(node.outputs[0]):
            return index
    return None


def _vector(value: onnx_ir.Value | None, size: int) -> bool:
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in FLOATS:
        return False
    shape = tensor.shape.numpy()
    return bool(shape) and shape[-1] == size and tensor.size == size


def _norm(stream: Stream, node: onnx_ir.Node, tables: set[onnx_ir.Value | None]) -> None:
    """Records a normalization and the products behind it, or what stands in the way."""
    last = (-1, (rank(node.inputs[0]) or 0) - 1)
    constants = [value for value in node.inputs[1:] if value is not None]
    if attribute(node, "axis", -1) not in last or not constants or not all(_vector(v, stream.size) for v in constants):
        stream.block(f"{node.op_type} has no constant weight of one number a channel", node)
        return
    if len(constants) > 1:
        gain = constant(node.inputs[1])
        if gain is None or not np.all(gain):
            stream.block("a weight of a LayerNormalization with a bias is zero", node)
            return
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        stream.block(f"something reads the statistics of {node.op_type}", node)
        return
    out = node.outputs[0]
    if out.is_graph_output():
        stream.block("a normalized value is an output of the model", node)
        return
    products, heads = [], []
    for use in out.uses():
        found = matrix(use.node) if use.idx == 0 else None
        if found is None:
            stream.block(f"{use.node.op_type} reads a normalized value, which is no product", use.node)
            return
        if found.shared is None:
            products.append((use.node, found))
        elif found.value in tables and found.layout == "nk":
            heads.append(use.node)
        else:
            reason = f"the weight of a product behind a normalization is shared with {found.shared}"
            stream.block(reason, use.node)
            return
    stream.norms.append(Norm(node, tuple(products), tuple(heads)))


def _table(stream: Stream, node: onnx_ir.Node, heads: list[onnx_ir.Node]) -> None:
    """A table may be read by embeddings and heads of this stream only."""
    table = node.inputs[0]
    assert table is not None
    if table.is_graph_output():
        stream.block("its embedding table is an output of the model", node)
    known = {*stream.tables, *heads}
    waiting = [use.node for use in table.uses()]
    while waiting:
        reader = waiting.pop()
        if is_op(reader, "Transpose"):
            waiting += [use.node for use in reader.outputs[0].uses()]
        elif reader not in known:
            stream.block(f"{reader.op_type} at {module_path(reader)} reads its embedding table, too", node)
