"""What is computed twice is computed once: equal constants, equal nodes, and equal sizes."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir

from ...ir.graph import attribute, constant
from ...ir.symbolic import known
from .work import Work

SMALL = 4096
"""Bytes; larger initializers are only compared by identity of their tensors."""

_RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "burnish"))
_GRAPHS = (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)


def deterministic(node: onnx_ir.Node) -> bool:
    """Whether ``node`` gives the same result for the same inputs and does nothing else; unknown domains: no."""
    if node.domain not in _DOMAINS or node.op_type in _RANDOM:
        return False
    if any(attr.type in _GRAPHS or attr.is_ref() for attr in node.attributes.values()):
        return False
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        flag = constant(node.inputs[2], limit=1)
        return flag is not None and not flag.any()
    return not (node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0))


def merge_initializers(work: Work) -> None:
    """Let equal constants be one initializer; large ones only if they are the same tensor object."""
    seen: dict[Hashable, onnx_ir.Value] = {}
    for value in list(work.graph.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        key: Hashable
        if tensor.nbytes <= SMALL and tensor.dtype != onnx_ir.DataType.STRING:
            key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        else:
            key = id(tensor)
        first = seen.setdefault(key, value)
        if first is not value and value.uses():
            value.replace_all_uses_with(first)
            del work.graph.graph.initializers[value.name or ""]
            work.count("equal constants => one")


def merge_nodes(work: Work) -> None:
    """Common subexpressions: of equal nodes with equal inputs, the first serves all."""
    seen: dict[Hashable, onnx_ir.Node] = {}
    sizes: dict[Hashable, onnx_ir.Value] = {}
    for node in list(work.graph.graph):
        if not deterministic(node):
            continue
        key = _key(node)
        first = seen.setdefault(key, node) if key is not None else node
        if first.graph is None:  # swept meanwhile, with the last node that read it
            first = seen[key] = node
        if first is not node:
            if _merge(work, first, node):
                work.count(f"equal {node.op_type} => one")
            continue
        if len(node.outputs) == 1 and node.op_type != "Constant":
            _merge_size(work, node, sizes)


def _merge(work: Work, first: onnx_ir.Node, second: onnx_ir.Node) -> bool:
    if any(value.is_graph_output() for value in second.outputs):
        return False
    for old, new in zip(second.outputs, first.outputs, strict=True):
        if new.shape is None:
            new.shape = old.shape
        old.replace_all_uses_with(new)
    work.edit("", second).remove([second])
    return True


def _merge_size(work: Work, node: onnx_ir.Node, sizes: dict[Hashable, onnx_ir.Value]) -> None:
    """Two computations of the same sizes, by whatever way: the first serves both."""
    value = node.outputs[0]
    if value.is_graph_output() or value.dtype is None:
        return
    found = work.symbolic(value)
    if found is None or found.dtype != value.dtype or not all(map(known, found.elements)):
        return
    key = (found.dtype, found.shape, tuple(str(element) for element in found.elements))
    first = sizes.setdefault(key, value)
    maker = first.producer()
    if maker is not None and maker.graph is None:  # swept meanwhile, with the last node that read it
        first = sizes[key] = value
    if first is not value and work.forward("equal sizes => one", node, first):
        return


def _key(node: onnx_ir.Node) -> Hashable | None:
    attributes: list[Hashable] = []
    for name, attr in sorted(node.attributes.items()):
        if attr.type == onnx_ir.AttributeType.TENSOR:
            tensor = attr.as_tensor()
            if tensor.nbytes > SMALL or tensor.dtype == onnx_ir.DataType.STRING:
                return None
            attributes.append((name, tensor.dtype, tuple(tensor.shape), tensor.tobytes()))
        elif attr.type in (onnx_ir.AttributeType.TENSORS, onnx_ir.AttributeType.TYPE_PROTO):
            return None
        else:
            attributes.append((name, repr(attr.value)))
    outputs = tuple(bool(value.name) for value in node.outputs)
    return (node.domain, node.op_type, node.overload, tuple(id(v) for v in node.inputs), tuple(attributes), outputs)
