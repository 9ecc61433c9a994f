"""Transposes of weights, done once instead of at each call or load."""

from __future__ import annotations

import onnx_ir

from ...ir.graph import Graph, attribute, is_op, module_path, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.weights import transposed

RULE = "transpose(weight) => weight"


def fold_transposes(graph: Graph) -> list[Remark]:
    """Replace ``Transpose(weight)`` by the transposed weight, read when it is written.

    A weight that something else reads too (a tied embedding) stays once in the file; the session transposes it when
    it loads.
    """
    edit = Editor(graph, RULE)
    remarks: list[Remark] = []
    folded: dict[tuple[onnx_ir.Value, tuple[int, ...]], onnx_ir.Value] = {}
    for node in list(graph.graph):
        source = node.inputs[0] if is_op(node, "Transpose") else None
        tensor = tensor_of(source)
        if source is None or tensor is None:
            continue
        perm = tuple(attribute(node, "perm", list(range(len(tensor.shape)))[::-1]))
        others = [use.node for use in source.uses() if not _same(use.node, perm)]
        if (others or source.is_graph_output()) and tensor.nbytes > 1 << 16:
            users = ", ".join(sorted({module_path(other) for other in others})) or "an output"
            remarks.append(
                Remark("missed", module_path(node), f"weight {source.name!r} is stored once, shared with {users}")
            )
            continue
        edit.at(node)
        if (source, perm) not in folded:
            folded[source, perm] = edit.initializer(transposed(tensor, perm), f"{source.name}.T")
        edit.replace(node.outputs[0], folded[source, perm])
        edit.sweep([node])
    return remarks


def _same(node: onnx_ir.Node, perm: tuple[int, ...]) -> bool:
    return is_op(node, "Transpose") and tuple(attribute(node, "perm", list(range(len(perm)))[::-1])) == perm
