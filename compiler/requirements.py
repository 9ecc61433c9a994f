"""The oldest ONNX Runtime that runs a graph, from its opsets, operators and element types."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir

from ..ir.graph import Graph, all_nodes, attribute

# First release of ONNX Runtime that implements an opset (docs/Versioning.md of ONNX Runtime).
_OPSETS = {15: "1.10", 16: "1.11", 17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23"}

# First release with a CPU kernel of a contributed operator; one that is not listed is older than all opsets above.
_CONTRIB = {
    "MatMulNBits": "1.17",
    "GatherBlockQuantized": "1.20",
    "GroupQueryAttention": "1.18",
    "MultiHeadAttention": "1.15",
    "RotaryEmbedding": "1.16",
    "SkipSimplifiedLayerNormalization": "1.14",
    "QuickGelu": "1.13",
    "MatMulBnb4": "1.17",
    "QMoE": "1.23",
    "LinearAttention": "1.25",
    "SparseAttention": "1.18",
}
_DTYPES = {
    onnx_ir.DataType.UINT4: "1.18",
    onnx_ir.DataType.INT4: "1.18",
    onnx_ir.DataType.FLOAT8E4M3FN: "1.15",
    onnx_ir.DataType.FLOAT8E5M2: "1.15",
    onnx_ir.DataType.FLOAT4E2M1: "1.23",
}


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def oldest_runtime(graph: Graph, installed: str) -> str:
    """The oldest ONNX Runtime (``major.minor``) that runs ``graph``.

    Args:
        graph: after lowering.
        installed: the version here, taken for whatever this table does not know yet.
    """
    return max(_needs(graph, ".".join(installed.split(".")[:2])), key=_key)


def _needs(graph: Graph, installed: str) -> Iterable[str]:
    opset = graph.graph.opset_imports.get("", 0)
    yield "1.10" if opset < 15 else _OPSETS.get(opset, installed)
    for node in all_nodes(graph):
        if node.domain == "com.microsoft":
            yield _CONTRIB.get(node.op_type, "1.10")
            bits = attribute(node, "bits", 4)
            if node.op_type in ("MatMulNBits", "GatherBlockQuantized") and bits != 4:
                yield {8: "1.22" if node.op_type == "MatMulNBits" else "1.23"}.get(bits, installed)
    for value in graph.graph.initializers.values():
        if value.dtype in _DTYPES:
            yield _DTYPES[value.dtype]
