"""Lowering of products by NF4 weights to ``MatMulBnb4``."""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, is_op, module_path, producer, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from . import kernels
from .nbits import CONTRIB

RULE = "x * codebook weights => MatMulBnb4"
_NF4 = 1
_LEVELS = 16


def lower_codebook(graph: Graph) -> list[Remark]:
    """Turn products by weights that are looked up in 16 levels into the kernel that does the looking up."""
    edit = Editor(graph, RULE)
    remarks = []
    for node in [n for n in graph.graph if is_op(n, "MatMul", "Gemm")]:
        source = producer(node.inputs[1], "Transpose")
        turned = source is not None
        value = source.inputs[0] if source is not None else node.inputs[1]
        parts = _parts(value)
        if parts is None:
            continue
        reason = _lower(edit, node, turned, parts)
        if reason is None:
            remarks.append(Remark("applied", module_path(node), f"{node.op_type} runs as MatMulBnb4"))
        else:
            remarks.append(Remark("missed", module_path(node), f"its codes are decoded before it runs: {reason}"))
    return remarks


def _parts(value: onnx_ir.Value | None) -> tuple[onnx_ir.TensorProtocol, onnx_ir.TensorProtocol] | None:
    """Codes [n, groups, group] and scales [n, groups, 1] of a weight [n, k], if it is made of such."""
    reshape = producer(value, "Reshape")
    scaled = None if reshape is None else producer(reshape.inputs[0], "Mul")
    levels = None if scaled is None else producer(scaled.inputs[0], "Gather")
    if scaled is None or levels is None:
        return None
    cast = producer(levels.inputs[1], "Cast")
    codes, scales = tensor_of(cast.inputs[0]) if cast is not None else None, tensor_of(scaled.inputs[1])
    table = tensor_of(levels.inputs[0])
    if codes is None or scales is None or table is None or codes.dtype != onnx_ir.DataType.UINT4:
        return None
    return (codes, scales) if table.size == _LEVELS and len(codes.shape) == 3 else None


def _lower(
    edit: Editor, node: onnx_ir.Node, turned: bool, parts: tuple[onnx_ir.TensorProtocol, onnx_ir.TensorProtocol]
) -> str | None:
    codes, scales = parts
    n, groups, group = (int(d) for d in codes.shape.numpy())
    x = node.inputs[0]
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if not plain or attribute(node, "transA", 0) or turned == bool(attribute(node, "transB", 0)):
            return "its Gemm scales or transposes"
    elif not turned:
        return "the weight is used untransposed"
    if group & (group - 1) or group < 16:
        return f"no kernel takes groups of {group}"
    if not kernels.has(CONTRIB, "MatMulBnb4", 1, ["tensor(float)", "tensor(uint8)", "tensor(float)"]):
        return f"ONNX Runtime {kernels.version()} has no MatMulBnb4"
    edit.at(node, [node])
    pairs = codes.numpy().astype(np.uint8).reshape(-1, 2)
    packed = (pairs[:, 0] << 4) | pairs[:, 1]  # the kernel has the first code of a pair in the high half
    name = node.name or "product"
    inputs = [
        x,
        edit.initializer(packed, f"{name}.codes"),
        edit.initializer(scales.numpy().reshape(-1), f"{name}.scales"),
    ]
    result = node.outputs[0]
    y = edit.op(
        "MatMulBnb4",
        inputs,
        {"K": groups * group, "N": n, "block_size": group, "quant_type": _NF4},
        domain=CONTRIB,
        dtype=result.dtype,
        shape=result.shape,
        hint=name,
    )
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        y = edit.op("Add", [y, node.inputs[2]], dtype=result.dtype, shape=result.shape)
    edit.replace(result, y)
    edit.sweep([node])
    return None
