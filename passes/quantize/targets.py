"""Which weights of a graph can be quantized, what uses them, and why the others cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import onnx_ir

from ...ir.graph import Graph, all_nodes, attribute, is_op, module_path, tensor_of

FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
SMALLEST_PRODUCT = 2048
"""A product with fewer weights stays as it is: its kernel costs more to start than its weights to read."""
SMALLEST_TABLE = 1 << 18
"""An embedding with fewer weights stays float, unless a product shares it: reading rows of it costs nothing."""

Layout = Literal["nk", "kn"]
_CUTS = ("Gather", "Slice", "Split", "Squeeze", "Reshape", "Transpose")
_OTHER_PRODUCTS = ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Einsum")


@dataclass
class Weight:
    """A constant matrix and everything that reads it.

    Attributes:
        value: the initializer (or ``Constant`` output).
        layout: ``nk`` if each row is one output channel (or one embedding), ``kn`` if each column is.
        products: ``MatMul`` and ``Gemm`` nodes that multiply by it.
        tables: ``Gather`` nodes that read rows of it.
        readers: (node, input index) of every direct use, ``Transpose`` included.
        obstacle: why it cannot be quantized, or None.
    """

    value: onnx_ir.Value
    layout: Layout | None = None
    products: list[onnx_ir.Node] = field(default_factory=list)
    tables: list[onnx_ir.Node] = field(default_factory=list)
    readers: list[tuple[onnx_ir.Node, int]] = field(default_factory=list)
    obstacle: str | None = None

    @property
    def users(self) -> list[onnx_ir.Node]:
        """Products first, then tables."""
        return [*self.products, *self.tables]

    @property
    def size(self) -> int:
        """Number of weights."""
        tensor = tensor_of(self.value)
        return 0 if tensor is None else int(tensor.size)

    @property
    def channels(self) -> tuple[int, int]:
        """Output channels and weights of each: (N, K)."""
        tensor = tensor_of(self.value)
        assert tensor is not None
        a, b = (int(d) for d in tensor.shape.numpy())
        return (b, a) if self.layout == "kn" else (a, b)


@dataclass
class Targets:
    """What a graph holds for a weight quantizer.

    Attributes:
        weights: matrices that products or embeddings read, in graph order, those with an obstacle included.
        others: (node, reason) of products that have no such matrix.
    """

    weights: list[Weight]
    others: list[tuple[onnx_ir.Node, str]]


def find(graph: Graph) -> Targets:
    """Look for constant matrices under MatMul, Gemm and Gather."""
    weights: dict[int, Weight] = {}
    others: list[tuple[onnx_ir.Node, str]] = []
    for node in all_nodes(graph):
        if is_op(node, "MatMul", "Gemm"):
            _product(graph, node, weights, others)
        elif is_op(node, "Gather") and _float_constant(node.inputs[0]) is not None:
            value = node.inputs[0]
            assert value is not None
            tensor = tensor_of(value)
            if tensor is not None and len(tensor.shape) == 2:
                weights.setdefault(id(value), Weight(value))
        elif is_op(node, *_OTHER_PRODUCTS):
            others.append((node, f"{node.op_type} has no kernel for low-bit weights"))
    for weight in weights.values():
        _classify(graph, weight)
    return Targets(list(weights.values()), others)


def _float_constant(value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
    tensor = tensor_of(value)
    return tensor if tensor is not None and tensor.dtype in (*FLOATS, onnx_ir.DataType.DOUBLE) else None


def behind_transpose(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """The value whose axes a chain of ``Transpose`` nodes permutes to give ``value``."""
    while value is not None and is_op(value.producer(), "Transpose"):
        node = value.producer()
        assert node is not None
        value = node.inputs[0]
    return value


def _cut_from_constant(value: onnx_ir.Value | None) -> bool:
    """Whether ``value`` is a part of a floating-point constant, perhaps rearranged."""
    while value is not None and is_op(value.producer(), *_CUTS):
        node = value.producer()
        assert node is not None
        value = node.inputs[0]
    return _float_constant(value) is not None


def _product(
    graph: Graph, node: onnx_ir.Node, weights: dict[int, Weight], others: list[tuple[onnx_ir.Node, str]]
) -> None:
    value = behind_transpose(node.inputs[1])
    tensor = _float_constant(value)
    if value is None or tensor is None:
        if _float_constant(behind_transpose(node.inputs[0])) is not None:
            others.append((node, "the weight is the left operand"))
        elif is_op(value.producer() if value else None, "DequantizeLinear"):
            others.append((node, "the weight is quantized already"))
        elif _cut_from_constant(value):
            reason = "the weight is cut out of a stack of matrices (experts?); only matrices are quantized"
            others.append((node, reason))
        else:
            others.append((node, "neither operand is constant"))
    elif len(tensor.shape) != 2:
        what = "a stack of matrices (experts?)" if len(tensor.shape) == 3 else "not a matrix"
        others.append((node, f"the weight of shape {tensor.shape} is {what}; only matrices are quantized"))
    elif node.graph is not graph.graph:
        others.append((node, "the product is inside a subgraph"))
    else:
        weights.setdefault(id(value), Weight(value))


def _classify(graph: Graph, weight: Weight) -> None:
    tensor = tensor_of(weight.value)
    assert tensor is not None
    _walk(graph, weight, weight.value, turned=False)
    if weight.obstacle is None and tensor.dtype not in FLOATS:
        weight.obstacle = f"no kernel multiplies {tensor.dtype.name} by low-bit weights"
    if weight.obstacle is None and weight.value.is_graph_output():
        weight.obstacle = "the weight is an output of the model"
    if weight.obstacle is not None:
        return
    if weight.products and weight.size < SMALLEST_PRODUCT:
        weight.obstacle = f"too small to pay: {weight.size} weights, fewer than {SMALLEST_PRODUCT}"
    elif not weight.products and weight.size < SMALLEST_TABLE:
        weight.obstacle = f"a table of {weight.size} weights, fewer than {SMALLEST_TABLE}, read row by row"


def _walk(graph: Graph, weight: Weight, value: onnx_ir.Value, *, turned: bool) -> None:
    for use in value.uses():
        node, index = use.node, use.idx
        if value is weight.value:
            weight.readers.append((node, index))
        if node.graph is not graph.graph:
            _obstacle(weight, f"{node.op_type} inside a subgraph reads it too")
        elif is_op(node, "Transpose") and attribute(node, "perm", [1, 0]) == [1, 0]:
            if node.outputs[0].is_graph_output():
                _obstacle(weight, "the transposed weight is an output of the model")
            _walk(graph, weight, node.outputs[0], turned=not turned)
        elif is_op(node, "MatMul") and index == 1:
            weight.products.append(node)
            _lay(weight, "nk" if turned else "kn")
        elif is_op(node, "Gemm") and index == 1:
            weight.products.append(node)
            _lay(weight, "nk" if turned != bool(attribute(node, "transB", 0)) else "kn")
            if attribute(node, "transA", 0):
                _obstacle(weight, "Gemm transposes its left operand")
        elif is_op(node, "Gather") and index == 0 and not turned and attribute(node, "axis", 0) in (0, -2):
            weight.tables.append(node)
            _lay(weight, "nk")
        else:
            _obstacle(weight, f"{node.op_type} at {module_path(node)} reads it too")


def _lay(weight: Weight, layout: Layout) -> None:
    if weight.layout is not None and weight.layout != layout:
        _obstacle(weight, "it is used both as it is and transposed, so no axis can be divided into groups for both")
    weight.layout = weight.layout or layout


def _obstacle(weight: Weight, reason: str) -> None:
    weight.obstacle = weight.obstacle or reason
