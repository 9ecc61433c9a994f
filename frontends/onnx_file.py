"""ONNX models, as files or objects, become graphs; whatever Burnish does not know passes through untouched."""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx
import onnx_ir

from ..ir.errors import InputError, ModelError, UnsupportedError
from ..ir.graph import MODULE, SOURCE, WORKING_OPSET, Graph, all_nodes
from ..ir.remarks import Remark
from ..ir.signature import NamedSignature, TensorSpec
from .imported import Imported
from .onnx_check import check_external, check_graph, check_header, light, read
from .onnx_proto import readable
from .onnx_shapes import infer_shapes
from .opset import raise_opset


def import_onnx(
    source: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model, *, opset: int | None = WORKING_OPSET
) -> Imported:
    """An ONNX model as a graph; the caller's object is never changed and external data stays unread.

    Args:
        source: path of a file, ``ModelProto`` or ``onnx_ir.Model``.
        opset: raise an older model to this opset where that keeps its meaning; None keeps the model's own.

    Raises:
        InputError: the file does not exist, or ``source`` is none of these.
        ModelError: the file cannot be read, its external data is missing or short, or the graph is invalid.
        UnsupportedError: the model takes something else than tensors, sequences and optionals.
    """
    remarks: list[Remark] = []
    if isinstance(source, onnx_ir.Model):
        where = "the given onnx_ir.Model"
        graph = source.clone()
        copy = light(_without_data(graph, where))
    else:
        if isinstance(source, onnx.ModelProto):
            proto, folder, where = source, Path(), "the given ModelProto"
        elif isinstance(source, str | os.PathLike):
            path = Path(source)
            proto, folder, where = read(path), path.parent, f"file {path}"
        else:
            raise InputError(
                f"a {type(source).__name__} is not an ONNX model",
                fix="pass a path, an onnx.ModelProto or an onnx_ir.Model",
            )
        check_header(proto, where)
        copy = light(proto)
        remarks += check_graph(copy, where)
        proto, changed = readable(proto, where)
        remarks += changed
        graph = _deserialize(proto, folder, where)
    check_external(graph, where)
    if isinstance(source, onnx_ir.Model):
        remarks += check_graph(copy, where)
    known = not remarks
    _normalize(graph)
    signature = _signature(graph, remarks)
    remarks += infer_shapes(graph)
    _set_provenance(graph)
    if opset is not None and known:
        remarks += _raise_opset(graph, opset)
    return Imported(graph, signature, "onnx", remarks, source_size=_weight_bytes(graph))


def _deserialize(proto: onnx.ModelProto, folder: Path, where: str) -> Graph:
    try:
        graph = onnx_ir.serde.deserialize_model(proto)
    except Exception as error:  # onnx_ir wraps whatever went wrong inside in its own error
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UnsupportedError(f"the model holds something that cannot be read: {reason}", where=where) from error
    onnx_ir.external_data.set_base_dir(graph.graph, folder.resolve())
    return graph


def _without_data(graph: Graph, where: str) -> onnx.ModelProto:
    """``graph`` as a proto in which initializers point nowhere, so that no weight is read."""
    values = [value for value in graph.graph.initializers.values() if value.const_value is not None]
    tensors = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, tensors, strict=True):
            assert tensor is not None and value.name is not None
            if tensor.size > 64 or isinstance(tensor, onnx_ir.LazyTensor | onnx_ir.ExternalTensor):
                value.const_value = onnx_ir.ExternalTensor(
                    "unread", None, None, tensor.dtype, shape=onnx_ir.Shape(tensor.shape.numpy()), name=value.name
                )
        return onnx_ir.serde.serialize_model(graph)
    except Exception as error:  # onnx_ir wraps whatever went wrong inside in its own error
        raise ModelError(f"the model cannot be serialized: {error}", where=where, fix="repair the model") from error
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _normalize(graph: Graph) -> None:
    """Write the standard domain one way; take initializers out of the inputs where they cannot be overridden."""
    if "ai.onnx" in graph.opset_imports:
        version = graph.opset_imports.pop("ai.onnx")
        graph.opset_imports.setdefault("", version)
    for node in all_nodes(graph):
        if node.domain == "ai.onnx":
            node.domain = ""
    if graph.ir_version < 4:
        # Before IR version 4 every initializer had to be listed as an input and was constant all the same.
        for value in [v for v in graph.graph.inputs if v.is_initializer()]:
            graph.graph.inputs.remove(value)
        graph.ir_version = 4


def _signature(graph: Graph, remarks: list[Remark]) -> NamedSignature:
    required = [value for value in graph.graph.inputs if not value.is_initializer()]
    optional = [value.name for value in graph.graph.inputs if value.is_initializer()]
    if optional:
        remarks.append(Remark("skipped", "", f"inputs with a default value keep it: {', '.join(map(str, optional))}"))
    return NamedSignature(tuple(map(_spec, required)), tuple(map(_spec, graph.graph.outputs)))


def _spec(value: onnx_ir.Value) -> TensorSpec:
    if isinstance(value.type, onnx_ir.SequenceType | onnx_ir.OptionalType):
        return TensorSpec(value.name or "", str(value.type), None)
    dims = None
    if value.shape is not None:
        # Some exporters write -1 for a dimension of any size.
        dims = tuple((dim if dim >= 0 else "?") if isinstance(dim, int) else dim.value or "?" for dim in value.shape)
    return TensorSpec(value.name or "", "UNDEFINED" if value.dtype is None else value.dtype.name, dims)


_SCOPE = re.compile(r"^/(?P<path>.+)/[^/]+$")


def _set_provenance(graph: Graph) -> None:
    """Name the module of each node: exporters write it as ``/model/layers.0/mlp/MatMul`` or as scopes in metadata."""
    for i, node in enumerate(all_nodes(graph)):
        if MODULE in node.metadata_props:
            continue
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        match = _SCOPE.match(node.name or "")
        name = node.name or f"{node.op_type}_{i}"
        if scopes:
            # "['', 'model', 'model.layers.0', ..., 'linear']": the last is the node itself.
            parts = re.findall(r"'([^']*)'", scopes)
            path = parts[-2] if len(parts) > 1 else ""
        else:
            path = match["path"].replace("/", ".") if match else ""
        node.metadata_props[MODULE] = path or name
        node.metadata_props.setdefault(SOURCE, name)


def _raise_opset(graph: Graph, opset: int) -> list[Remark]:
    version = graph.opset_imports.get("", opset)
    if version >= opset:
        return []
    values = {"opset": version, "target": opset}
    reason = raise_opset(graph, opset)
    if reason is not None:
        return [Remark("skipped", "", f"the model keeps opset {version}: {reason}", values)]
    oldest = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    graph.ir_version = max(graph.ir_version, oldest)
    return [Remark("applied", "", f"opset raised from {version} to {opset}", values)]


def _weight_bytes(graph: Graph) -> int:
    return sum(
        value.const_value.nbytes
        for scope in graph.graphs()
        for value in scope.initializers.values()
        if value.const_value is not None
    )
