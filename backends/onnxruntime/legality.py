"""Whether every node of a lowered graph has a kernel in the installed build."""

from __future__ import annotations

from typing import Any

import onnx_ir

from ...ir.errors import UnsupportedError
from ...ir.graph import MODULE, RULE, Graph, all_nodes, module_path
from ...ir.remarks import Remark
from . import kernels

_TYPES = {
    "FLOAT": "float",
    "DOUBLE": "double",
    **{name: name.lower() for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
    **{name: name.lower() for name in ("INT4", "UINT4", "INT2", "UINT2", "BOOL", "STRING", "FLOAT16", "BFLOAT16")},
    **{name: name.lower() for name in ("FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ")},
}
_STANDARD = ("", "ai.onnx")


def type_name(value: onnx_ir.Value | None) -> str | None:
    """ONNX Runtime's name of a tensor's type, such as ``tensor(float)``; None if unknown or not a tensor."""
    if value is None or not isinstance(value.type, onnx_ir.TensorType) or value.dtype is None:
        return None
    name = _TYPES.get(value.dtype.name)
    return None if name is None else f"tensor({name})"


def nonstandard(graph: Graph) -> dict[str, int]:
    """How often each operator outside the ONNX standard occurs, by ``domain.op_type``."""
    counts: dict[str, int] = {}
    for node in all_nodes(graph):
        if node.domain not in _STANDARD:
            key = f"{node.domain}.{node.op_type}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def check(graph: Graph) -> list[Remark]:
    """Check every node against the kernels of the installed build.

    Operators that the build does not know at all are left for the runtime to judge, unless a rewrite made them: a
    file may use custom operators; a remark names them.

    Raises:
        UnsupportedError: a node that a frontend or pass made has no kernel.
    """
    remarks: list[Remark] = []
    seen: set[tuple[str, str, tuple[str | None, ...]]] = set()
    newest = kernels.newest_opset()
    if graph.opset_imports.get("", 0) > newest:
        raise UnsupportedError(
            f"the model needs opset {graph.opset_imports['']}, ONNX Runtime {kernels.version()} knows up to {newest}",
            fix="upgrade onnxruntime, or convert the model to an older opset",
        )
    for node in all_nodes(graph):
        domain = "" if node.domain in _STANDARD else node.domain
        types = tuple(type_name(value) for value in node.inputs)
        key = (domain, node.op_type, types)
        if key in seen or node.op_identifier() in graph.functions:
            continue
        seen.add(key)
        if _runs(graph, node, domain, types):
            continue
        known = kernels.schema(domain, node.op_type, graph.opset_imports.get(domain, 1)) is not None
        name = f"{domain}.{node.op_type}" if domain else node.op_type
        kinds = ", ".join(kind or "?" for kind in types)
        what = f"ONNX Runtime {kernels.version()} has no CPU kernel for {name}({kinds})"
        ours = RULE in node.metadata_props and bool(domain)
        if (known and (MODULE in node.metadata_props or RULE in node.metadata_props)) or ours:
            raise UnsupportedError(what, where=module_path(node), fix=_advice(kinds))
        remarks.append(Remark("missed", module_path(node), f"{what}; left for the runtime to judge"))
    return remarks


def _advice(kinds: str) -> str:
    if "bfloat16" in kinds:
        return "convert the model to float32 before compiling (model.float())"
    if "float16" in kinds:
        return "compile the model in float32"
    return "keep this operator out of the graph, or compile for another backend"


def _runs(graph: Graph, node: onnx_ir.Node, domain: str, types: tuple[str | None, ...]) -> bool:
    if not domain and node.op_type == "Constant":
        return True  # an initializer by another name
    opset = graph.opset_imports.get(domain, 1)
    if kernels.has(domain, node.op_type, opset, types):
        return True
    if "tensor(float16)" in types:
        # The session inserts casts around a float16 node that only has a float32 kernel.
        wide = tuple("tensor(float)" if kind == "tensor(float16)" else kind for kind in types)
        if kernels.has(domain, node.op_type, opset, wide):
            return True
    return _is_function(node, opset)


def _is_function(node: onnx_ir.Node, opset: int) -> bool:
    """Whether ONNX defines the operator by others, which the session inlines."""
    import onnx

    if node.domain not in _STANDARD or not onnx.defs.has(node.op_type, opset, ""):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)
