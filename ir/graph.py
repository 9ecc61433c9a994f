"""The graph: an ``onnx_ir.Model``, and the few questions that every pass asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx_ir

Graph: TypeAlias = onnx_ir.Model
"""A model between two passes. Its main graph is ``graph.graph``."""

WORKING_OPSET = 23
"""The ONNX opset that frontends produce: the oldest with RMSNormalization, RotaryEmbedding and Attention,
so that files load in the widest range of runtimes. An imported file of a newer opset keeps its own."""

MODULE = "burnish.module"
"""Provenance: dotted path of the module a node came from, such as ``model.layers.0.self_attn.q_proj``."""
SOURCE = "burnish.source"
"""Provenance: the source node (an FX node's name and target, or a name in the imported file)."""
SPARSITY = "burnish.sparsity"
"""The pattern of zeros of a product's weights and their share, such as ``2:4 0.5000``."""
FLOAT_INPUTS = "burnish.float_inputs"
"""On a ``DequantizeLinear`` of weights: products by it take their inputs as they are, whatever a faster kernel does."""
RULE = "burnish.rule"
"""Provenance: the rewrites that made the node, oldest first, separated by ``;``."""
UNPADDED = "attention with a mask of keys => attention without it where it hides nothing"
"""The rewrite that makes an ``If`` of an attention, by which one is known in a file that was compiled before."""


def all_nodes(graph: Graph) -> Iterator[onnx_ir.Node]:
    """Every node of the main graph and of its subgraphs, outer before inner."""
    yield from onnx_ir.traversal.RecursiveGraphIterator(graph.graph)


def is_op(node: onnx_ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Whether ``node`` is one of these operators of ``domain``."""
    return node is not None and node.domain in (domain, domain or "ai.onnx") and (node.op_type in op_types)


def producer(value: onnx_ir.Value | None, *op_types: str, domain: str = "") -> onnx_ir.Node | None:
    """The node that makes ``value``, if it is one of these operators (any operator if none is named)."""
    node = None if value is None else value.producer()
    return node if not op_types or is_op(node, *op_types, domain=domain) else None


def attribute(node: onnx_ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute (int, float, str, list, tensor, graph), or ``default`` if it is absent."""
    attr = node.attributes.get(name)
    if attr is None:
        return default
    if attr.type == onnx_ir.AttributeType.STRING:
        return attr.as_string()
    if attr.type in (onnx_ir.AttributeType.INTS, onnx_ir.AttributeType.FLOATS, onnx_ir.AttributeType.STRINGS):
        return list(attr.value)
    return attr.value


def tensor_of(value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
    """The constant tensor behind ``value`` (initializer or ``Constant``), unread; None if it is not constant.

    An initializer that is also a graph input can be overridden by the caller, so it is not constant.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if is_op(node, "Constant"):
        assert node is not None
        attr = node.attributes.get("value")
        if attr is not None and attr.type == onnx_ir.AttributeType.TENSOR and not attr.is_ref():
            tensor: onnx_ir.TensorProtocol = attr.value
            return tensor
        return onnx_ir.convenience.get_const_tensor(value)
    return None


def sizes_of(tensor: onnx_ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a constant tensor."""
    return tuple(int(size) for size in tensor.shape.numpy())


def constant(value: onnx_ir.Value | None, *, limit: int | None = None) -> np.ndarray[Any, Any] | None:
    """The constant behind ``value`` as an array, or None; tensors of more than ``limit`` elements are not read."""
    tensor = tensor_of(value)
    if tensor is None or (limit is not None and tensor.size > limit):
        return None
    return tensor.numpy()


def module_path(node: onnx_ir.Node) -> str:
    """Dotted module path of a node, or its name where it has none."""
    return node.metadata_props.get(MODULE) or node.name or node.op_type


def rules_of(node: onnx_ir.Node) -> list[str]:
    """The rewrites that made a node, oldest first."""
    return [rule for rule in node.metadata_props.get(RULE, "").split(";") if rule]


def dims(value: onnx_ir.Value | None) -> tuple[int | onnx_ir.SymbolicDim, ...] | None:
    """The dimensions of ``value``, or None if its rank is unknown."""
    return None if value is None or value.shape is None else tuple(value.shape)


def rank(value: onnx_ir.Value | None) -> int | None:
    """The number of dimensions, or None if unknown."""
    shape = dims(value)
    return None if shape is None else len(shape)


def read_elsewhere(node: onnx_ir.Node) -> bool:
    """Whether a node's first output has other readers than the next node of a chain: several, or the graph's caller."""
    value = node.outputs[0]
    return len(list(value.uses())) != 1 or value.is_graph_output()
