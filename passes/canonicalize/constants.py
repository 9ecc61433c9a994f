"""Constants: lifted out of ``Constant`` nodes, and whatever small thing follows from them computed now.

The installed ONNX Runtime computes them, with all its own optimizations off, so that the numbers are the ones that
the session would have computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir

from ...ir.graph import constant, tensor_of
from ...ir.rewrite import Editor
from .duplicates import deterministic
from .work import Work, used

Array: TypeAlias = np.ndarray[Any, Any]

LIMIT = 1 << 16
"""Elements; nothing larger is read or made."""

_PLAIN = frozenset("BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 FLOAT16 FLOAT DOUBLE".split())
# Quantized constants stay as they are: that is their form. So do transposed weights (the backend folds those).
_KEPT = frozenset(("Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))


def lift(work: Work) -> None:
    """Turn ``Constant`` nodes into initializers."""
    for node in list(work.graph.graph):
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
            continue
        value = node.outputs[0]
        tensor = tensor_of(value)
        if tensor is None:
            continue
        name = value.name or "constant"
        new = onnx_ir.Value(
            name=name,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        value.replace_all_uses_with(new)
        work.graph.graph.remove(node, safe=True)
        work.graph.graph.register_initializer(new)
        work.count("Constant => initializer")


def fold_sizes(work: Work) -> None:
    """Replace small integer tensors that are known although their inputs are not (``Shape`` of fixed dimensions)."""
    for node in list(work.graph.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type == "Constant" or len(node.outputs) != 1:
            continue
        value = node.outputs[0]
        if value.dtype is None or value.is_graph_output() or not value.uses():
            continue
        found = work.symbolic(value)
        array = None if found is None or found.dtype != value.dtype else found.constant()
        if array is not None:
            work.replace("known sizes => constant", node, partial(_initializer, array, value.name or "sizes"))


def _initializer(array: Array, hint: str, edit: Editor) -> onnx_ir.Value:
    return edit.initializer(array, hint)


def fold(work: Work) -> None:
    """Compute every small deterministic node whose inputs are all constant."""
    known: set[onnx_ir.Value] = set()
    nodes = []
    for node in work.graph.graph:
        if _foldable(node, known):
            known.update(node.outputs)
            nodes.append(node)
    if not nodes:
        return
    wanted = [v for n in nodes for v in n.outputs if v.name and _leaves(v, known)]
    results = _run(work, nodes, wanted)
    if results is None:
        # One node that the runtime cannot execute must not keep the others from being folded.
        results = {}
        for node in nodes:
            if all(v is None or v in results or tensor_of(v) is not None for v in node.inputs):
                results.update(_run(work, [node], [v for v in node.outputs if v.name], results) or {})
    for node in nodes:
        values = [v for v in node.outputs if used(v)]
        if not values or not all(v in results for v in values) or any(results[v].size > LIMIT for v in values):
            continue
        editor = work.edit("constant folding", node)
        for value in values:
            editor.replace(value, editor.initializer(results[value], value.name or node.op_type))
        work.count("constant folding")
    for node in reversed(nodes):
        if node.graph is not None and not any(used(v) for v in node.outputs):
            work.edit("", node).sweep([node])


def _leaves(value: onnx_ir.Value, known: set[onnx_ir.Value]) -> bool:
    """Whether something that is not folded itself reads ``value``."""
    return any(not all(v in known for v in use.node.outputs) for use in value.uses())


def _foldable(node: onnx_ir.Node, known: set[onnx_ir.Value]) -> bool:
    if node.op_type in _KEPT or node.domain not in ("", "ai.onnx") or not node.inputs or not deterministic(node):
        return False
    if any(value.is_graph_output() for value in node.outputs):
        return False
    size = 0
    for value in node.inputs:
        if value is None:
            continue
        tensor = tensor_of(value)
        if tensor is not None:
            if tensor.size > LIMIT or tensor.dtype.name not in _PLAIN:
                return False
            size += tensor.size
        elif value not in known:
            return False
    first = node.inputs[0]
    if node.op_type == "Transpose" and (first is None or first.dtype is None or first.dtype.is_floating_point()):
        return False
    return all(_bounded(value, size) for value in node.outputs if value.name)


def _bounded(value: onnx_ir.Value, inputs: int) -> bool:
    if value.dtype is None or value.dtype.name not in _PLAIN or value.shape is None:
        return False
    sizes = [dim for dim in value.shape if isinstance(dim, int)]
    return len(sizes) == len(value.shape) and math.prod(sizes) <= LIMIT


def _run(
    work: Work,
    nodes: Sequence[onnx_ir.Node],
    wanted: Sequence[onnx_ir.Value],
    known: dict[onnx_ir.Value, Array] | None = None,
) -> dict[onnx_ir.Value, Array] | None:
    """Results of ``nodes`` by value, or None if the runtime does not execute one of them."""
    import onnxruntime

    made = {v for node in nodes for v in node.outputs}
    tensors: dict[str, onnx.TensorProto] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None or value in made or value.name in tensors:
                continue
            array = known[value] if known is not None and value in known else constant(value)
            assert array is not None and value.name is not None
            tensors[value.name] = onnx.numpy_helper.from_array(np.asarray(array), value.name)
    outputs = []
    for value in wanted:
        assert value.dtype is not None and value.name is not None
        outputs.append(onnx.helper.make_tensor_value_info(value.name, value.dtype.value, None))
    graph = onnx.helper.make_graph(
        [onnx_ir.serde.serialize_node(node) for node in nodes], "fold", [], outputs, list(tensors.values())
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in work.graph.opset_imports.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=min(work.graph.ir_version, 10))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run([value.name for value in wanted], {})
    except Exception:  # onnxruntime raises a class of its own per failure; whatever it is, the node stays
        return None
    return {value: np.asarray(result) for value, result in zip(wanted, results, strict=True)}
