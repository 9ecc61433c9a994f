"""Types and shapes of a node's outputs from those of its inputs."""

from __future__ import annotations

import onnx
import onnx_ir

from .graph import tensor_of

DATA_LIMIT = 1024
"""Constants up to this many elements are given to shape inference as data."""


def infer(node: onnx_ir.Node, opset: int) -> None:
    """Set dtype and shape of each output of ``node`` that can be inferred; what is known already stays.

    Args:
        node: its inputs carry what is known of their types.
        opset: version of the node's domain.

    Raises:
        VerificationError: if the operator does not accept its inputs.
    """
    _infer_by_schema(node, opset)


def _infer_by_schema(node: onnx_ir.Node, opset: int) -> None:
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    proto = onnx_ir.to_proto(node)
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.type is None:
            return
        name = f"i{i}"
        proto.input[i] = name
        types[name] = onnx_ir.serde.serialize_value(value).type
        tensor = tensor_of(value)
        if tensor is not None and tensor.size <= DATA_LIMIT:
            data[name] = onnx_ir.to_proto(onnx_ir.Tensor(tensor.numpy(), name=name, dtype=tensor.dtype))
    for i in range(len(proto.output)):
        proto.output[i] = f"o{i}"
    try:
        result = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return
    for i, value in enumerate(node.outputs):
        if f"o{i}" in result:
            typed = onnx_ir.serde.deserialize_type_proto_for_type(result[f"o{i}"])
            shape = onnx_ir.serde.deserialize_type_proto_for_shape(result[f"o{i}"])
            if value.type is None:
                value.type = typed
            if value.shape is None:
                value.shape = shape
