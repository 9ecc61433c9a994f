"""What can be wrong with an ONNX model, each told as one error: unreadable, newer, truncated, invalid, data missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir

from ..ir.errors import InputError, ModelError
from ..ir.graph import Graph, all_nodes
from ..ir.remarks import Remark

SMALL = 1024
"""Bytes; initializers up to this size stay in the light copy, because shape inference looks at their data."""


def read(path: Path) -> onnx.ModelProto:
    """The model in a file, its external data unread.

    Raises:
        InputError: there is no such file.
        ModelError: it is not an ONNX model, or not all of one.
    """
    where = f"file {path}"
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, not an ONNX file", where=where, fix="pass the path of the .onnx file in it"
        )
    if not path.exists():
        raise InputError(f"there is no file {path}", where=where, fix="check the path")
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(
            f"the file cannot be read: {error.strerror}", where=where, fix="check its permissions"
        ) from error
    except Exception as error:  # protobuf's DecodeError; text formats raise others
        raise ModelError(
            "the file is not an ONNX model, or is truncated",
            where=where,
            fix="download or export it again; a file of a few hundred bytes may be a Git LFS pointer",
        ) from error
    return proto


def check_header(proto: onnx.ModelProto, where: str) -> None:
    """Check that ``proto`` is a whole model of a version that can be read.

    Raises:
        ModelError: it is empty, truncated, or newer than the installed onnx.
    """
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(
            "it holds no ONNX graph: the file is not an ONNX model, or is truncated",
            where=where,
            fix="download or export it again",
        )
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"its format (IR version {proto.ir_version}) is newer than the installed onnx reads ({onnx.IR_VERSION})",
            where=where,
            fix="install a newer onnx and onnxruntime, or export the model for an older version",
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise ModelError(
                f"it uses opset {entry.version}, the installed onnx knows opsets up to {newest}",
                where=where,
                fix="install a newer onnx and onnxruntime, or export the model for an older opset",
            )
    for tensor in proto.graph.initializer:
        _check_inline(tensor, where)


def _check_inline(tensor: onnx.TensorProto, where: str) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or not tensor.HasField("raw_data"):
        return
    try:
        dtype = onnx_ir.DataType(tensor.data_type)
    except ValueError:
        return
    if dtype == onnx_ir.DataType.STRING:
        return
    wanted = math.ceil(math.prod(tensor.dims) * dtype.bitwidth / 8)
    if len(tensor.raw_data) != wanted:
        raise ModelError(
            f"initializer {tensor.name!r} has {len(tensor.raw_data)} bytes of data, its shape needs {wanted}",
            where=where,
            fix="export the model again",
        )


def light(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the data of large and external initializers, which become inputs; value types are shared."""
    copy = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    source, graph = proto.graph, copy.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    inputs = {value.name for value in source.input}
    for tensor in source.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def check_graph(copy: onnx.ModelProto, where: str) -> list[Remark]:
    """Check the light copy of a model against the ONNX specification.

    Returns:
        Remarks on what runtimes accept although the specification does not know it.

    Raises:
        ModelError: the graph is invalid.
    """
    try:
        onnx.checker.check_model(copy)
    except (onnx.checker.ValidationError, ValueError) as error:
        text = str(error).strip()
        summary = next((line.strip() for line in text.splitlines() if line.strip()), "unknown reason")
        if "No Op registered for" in text or "is deprecated in domain_version" in text:
            return [Remark("skipped", "", f"the ONNX checker does not know an operator of the model: {summary}")]
        raise ModelError(
            f"the graph is not valid: {summary}", where=where, fix="repair the model, or export it again"
        ) from error
    return []


def check_external(graph: Graph, where: str) -> None:
    """Check that the files of external tensors exist and are long enough; nothing is read.

    Raises:
        ModelError: data is missing or short.
    """
    sizes: dict[str, int] = {}
    for name, tensor in _tensors(graph):
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            continue
        path = Path(tensor.path)
        if str(path) not in sizes:
            if not path.is_file():
                raise ModelError(
                    f"the external data file {tensor.location!r} is missing",
                    where=f"{where}, initializer {name!r}, looked for {path}",
                    fix="put the data file beside the model file; a ModelProto whose data is external must be given "
                    "as the path of its file",
                )
            sizes[str(path)] = path.stat().st_size
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if end > sizes[str(path)]:
            raise ModelError(
                f"the external data file {tensor.location!r} is truncated: it has {sizes[str(path)]} bytes, "
                f"initializer {name!r} ends at byte {end}",
                where=where,
                fix="download or export it again",
            )


def _tensors(graph: Graph) -> Iterator[tuple[str, onnx_ir.TensorProtocol]]:
    for scope in graph.graphs():
        for value in scope.initializers.values():
            if value.const_value is not None:
                yield value.name or "", value.const_value
    for node in all_nodes(graph):
        for attr in node.attributes.values():
            if attr.type == onnx_ir.AttributeType.TENSOR:
                yield node.name or "", attr.value  # as_tensor() checks a protocol, slowly
