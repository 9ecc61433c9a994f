"""Counts of a graph and of an ONNX file: weights, bytes, operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
from onnx.external_data_helper import uses_external_data

from ..ir.graph import Graph, all_nodes, is_op, tensor_of


def node_count(graph: Graph) -> int:
    """Nodes of the graph and its subgraphs."""
    return sum(1 for _ in all_nodes(graph))


def weight_tensors(graph: Graph) -> list[onnx_ir.TensorProtocol]:
    """Constant tensors of rank 1 or more, each once however many initializers share it."""
    found: dict[int, onnx_ir.TensorProtocol] = {}
    for scope in graph.graphs():
        for value in scope.initializers.values():
            if value.const_value is not None and len(value.const_value.shape):
                found[id(value.const_value)] = value.const_value
    for node in all_nodes(graph):
        if is_op(node, "Constant") and (tensor := tensor_of(node.outputs[0])) is not None and len(tensor.shape):
            found[id(tensor)] = tensor
    return list(found.values())


def weight_count(graph: Graph) -> int:
    """Number of weights: elements of the constant tensors."""
    return sum(tensor.size for tensor in weight_tensors(graph))


@dataclass(frozen=True)
class FileSizes:
    """What an ONNX file holds.

    Attributes:
        weight_bytes: bytes of its tensors; one that two initializers share counts once.
        file_bytes: bytes on disk of the file and its data.
        operators: how often each operator occurs; ``domain.Name`` if it is not standard.
        nodes: number of nodes, subgraphs included.
    """

    weight_bytes: int
    file_bytes: int
    operators: dict[str, int]
    nodes: int


def measure(path: Path) -> FileSizes:
    """Measure an ONNX file without reading its external data."""
    proto = onnx.load(path, load_external_data=False)
    operators: Counter[str] = Counter()
    places: dict[tuple[str, int], int] = {}
    inline = 0
    pending = [proto.graph, *proto.functions]
    while pending:
        scope = pending.pop()
        tensors = list(scope.initializer) if isinstance(scope, onnx.GraphProto) else []
        for node in scope.node:
            standard = node.domain in ("", "ai.onnx")
            operators[node.op_type if standard else f"{node.domain}.{node.op_type}"] += 1
            for attr in node.attribute:
                pending += [attr.g] if attr.HasField("g") else []
                pending += attr.graphs
                tensors += [attr.t] if attr.HasField("t") else []
        for tensor in tensors:
            if uses_external_data(tensor):
                entries = {entry.key: entry.value for entry in tensor.external_data}
                key = (entries["location"], int(entries.get("offset", 0)))
                places[key] = max(places.get(key, 0), int(entries.get("length", 0)))
            else:
                inline += onnx_ir.serde.deserialize_tensor(tensor).nbytes
    files = {path} | {path.parent / location for location, _ in places}
    total = sum(file.stat().st_size for file in files)
    return FileSizes(inline + sum(places.values()), total, dict(operators.most_common()), operators.total())
