"""A graph as text: one line per node, with shapes; weights are summarised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir

from .graph import MODULE, Graph, tensor_of
from .shapes.node_view import show

SMALL = 8
"""Constants of at most this many elements are printed in full."""

_SHORT = {
    "FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16", "DOUBLE": "f64",
    "INT8": "i8", "INT16": "i16", "INT32": "i32", "INT64": "i64", "INT4": "i4", "INT2": "i2",
    "UINT8": "u8", "UINT16": "u16", "UINT32": "u32", "UINT64": "u64", "UINT4": "u4", "UINT2": "u2",
    "BOOL": "bool", "STRING": "str", "COMPLEX64": "c64", "COMPLEX128": "c128",
    "FLOAT8E4M3FN": "f8e4m3", "FLOAT8E5M2": "f8e5m2", "FLOAT4E2M1": "f4e2m1",
}  # fmt: skip


def format_graph(graph: Graph | onnx_ir.Graph, *, modules: bool = True, weights: bool = False) -> str:
    """The whole graph as text.

    Args:
        graph: a model or one graph of it.
        modules: print the module path above the nodes that come from it.
        weights: list the initializers.
    """
    return "\n".join(_lines(graph, modules, weights))


def _lines(model: Graph | onnx_ir.Graph, modules: bool, weights: bool) -> Iterator[str]:
    graph = model.graph if isinstance(model, onnx_ir.Model) else model
    if isinstance(model, onnx_ir.Model):
        opsets = ", ".join(f"{domain or 'onnx'} {version}" for domain, version in sorted(model.opset_imports.items()))
        yield f"{graph.name or 'graph'} (opset {opsets})"
    yield f"inputs: {_typed_list(graph.inputs)}"
    held = [v.const_value for v in graph.initializers.values() if v.const_value is not None]
    if held:
        yield f"weights: {len(held)} tensors, {format_size(sum(t.nbytes for t in held))}"
    if weights:
        yield from (f"  {format_value(v)}" for v in graph.initializers.values())
    yield from _body(graph, "  ", modules)
    yield f"outputs: {_typed_list(graph.outputs)}"
    if isinstance(model, onnx_ir.Model):
        for function in model.functions.values():
            arguments = ", ".join(f"%{v.name}" for v in function.inputs)
            yield f"function {function.domain}::{function.name}({arguments}) -> " + ", ".join(
                f"%{v.name}" for v in function.outputs
            )
            yield from _body(function, "  ", modules)


def _body(scope: onnx_ir.Graph | onnx_ir.Function, indent: str, modules: bool) -> Iterator[str]:
    last = ""
    for node in scope:
        path = node.metadata_props.get(MODULE, "")
        if modules and path != last:
            yield f"{indent}# {path or '(no module)'}"
            last = path
        yield indent + format_node(node)
        for attr in node.attributes.values():
            if attr.type == onnx_ir.AttributeType.GRAPH:
                body = attr.as_graph()
                yield f"{indent}  {attr.name}({_typed_list(body.inputs)}) {{"
                yield from _body(body, indent + "    ", modules)
                yield f"{indent}  }} -> {', '.join(f'%{v.name}' for v in body.outputs)}"


def format_node(node: onnx_ir.Node) -> str:
    """One node on one line: ``%y f32[batch, 4] = Add(%x, %b f32[4]{…})``."""
    outputs = ", ".join(format_value(v) for v in node.outputs if v.name or v.uses())
    inputs = ", ".join(_argument(v) for v in node.inputs)
    name = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    attributes = ", ".join(
        f"{attr.name}={_attribute(attr)}"
        for attr in node.attributes.values()
        if attr.type not in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)
    )
    return f"{outputs} = {name}({inputs})" + (f" {{{attributes}}}" if attributes else "")


def format_value(value: onnx_ir.Value) -> str:
    """A value with element type and shape."""
    return f"%{value.name} {format_type(value)}"


def format_type(value: onnx_ir.Value) -> str:
    """Element type and shape, such as ``f32[batch, 4]``; ``?`` for what is not known."""
    dtype = "?" if value.dtype is None else _SHORT.get(value.dtype.name, value.dtype.name.lower())
    if value.type is not None and type(value.type) is not onnx_ir.TensorType:
        return str(value.type)
    return dtype + show(None if value.shape is None else value.shape.dims)


def format_size(count: int) -> str:
    """Bytes for people: ``538.1 MB`` (powers of ten)."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _typed_list(values: Any) -> str:
    return ", ".join(map(format_value, values))


def _argument(value: onnx_ir.Value | None) -> str:
    if value is None:
        return "_"
    tensor = tensor_of(value)
    if tensor is None:
        return f"%{value.name}"
    if tensor.size <= SMALL and tensor.dtype != onnx_ir.DataType.STRING:
        return _numbers(tensor)
    return f"%{value.name} {format_type(value)}"


def _numbers(tensor: onnx_ir.TensorProtocol) -> str:
    data = tensor.numpy()
    short = _SHORT.get(tensor.dtype.name, tensor.dtype.name.lower())
    # Types that NumPy lacks (bfloat16, int4) print through float64.
    text = np.array2string(data if data.dtype.kind in "iubf" else data.astype(np.float64), separator=", ")
    return f"{short} {text}".replace("\n", "")


def _attribute(attr: onnx_ir.Attr) -> str:
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type == onnx_ir.AttributeType.TENSOR:
        tensor = attr.value
        if tensor.size <= SMALL and tensor.dtype != onnx_ir.DataType.STRING:
            return _numbers(tensor)
        return f"<{tensor.dtype.name.lower()}{list(tensor.shape)}>"
    if attr.type == onnx_ir.AttributeType.FLOAT:
        return f"{attr.value:.6g}"
    if attr.type in (onnx_ir.AttributeType.INTS, onnx_ir.AttributeType.FLOATS, onnx_ir.AttributeType.STRINGS):
        return str(list(attr.value))
    return str(attr.value)
