"""Parts of the ONNX format that the graph cannot hold, rewritten in a copy before reading."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from ..ir.errors import UnsupportedError
from ..ir.remarks import Remark


def readable(proto: onnx.ModelProto, where: str) -> tuple[onnx.ModelProto, list[Remark]]:
    """``proto`` itself if the graph can hold all of it; else a copy in which sparse constants are dense.

    Raises:
        UnsupportedError: an input is a map.
    """
    remarks = []
    for value in proto.graph.input:
        if _has_map(value.type):
            raise UnsupportedError(
                f"input {value.name!r} is a map, and only tensors, sequences and optionals can be passed",
                where=where,
                fix="cut the model after the operator that takes the map",
            )
    maps = [v.name for v in (*proto.graph.output, *proto.graph.value_info) if _has_map(v.type)]
    sparse = [g for g in _graphs(proto.graph) if g.sparse_initializer or any(map(_sparse_constant, g.node))]
    if proto.training_info:
        remarks.append(
            Remark("skipped", "", "training information in the model is left out: compiling is for inference")
        )
    if not maps and not sparse:
        return proto, remarks
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in (*copy.graph.output, *copy.graph.value_info):
        if _has_map(value.type):
            # The runtime infers it again from the operator that makes it.
            value.ClearField("type")
    for graph in _graphs(copy.graph):
        graph.initializer.extend(_dense(tensor) for tensor in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for node in filter(_sparse_constant, graph.node):
            tensor = _dense(node.attribute[0].sparse_tensor)
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", tensor))
    if sparse:
        remarks.append(Remark("applied", "", "sparse constants became dense"))
    return copy, remarks


def _has_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _has_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _has_map(kind.optional_type.elem_type)
    return bool(kind.HasField("map_type"))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("g"):
                yield from _graphs(attr.g)


def _sparse_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("sparse_tensor")


def _dense(tensor: onnx.SparseTensorProto) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(tensor.values)
    indices = onnx.numpy_helper.to_array(tensor.indices)
    dense = np.zeros(tuple(tensor.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(dense, tensor.values.name)
