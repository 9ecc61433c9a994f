"""Take fused operators apart: an ONNX graph as exporters wrote it in 2021 (opset 13).

Nothing a file of that time could not hold stays: normalizations become means and roots, Gelu becomes Erf or Tanh,
RotaryEmbedding becomes products with cosines and sines, Attention two products with a softmax between them.

    python -m burnish.tools.decompose IN.onnx OUT.onnx
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir

from ..ir.errors import BurnishError, UnsupportedError
from ..ir.graph import Graph, attribute, constant, dims, rank
from ..ir.infer import infer_graph
from ..ir.rewrite import Editor
from .decompose_attention import attention, rotary_embedding

OPSET = 13
_HALF = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)

Rule = Callable[[Editor, onnx_ir.Node], onnx_ir.Value]


def decompose(graph: Graph) -> Counter[str]:
    """Rewrite the main graph in place, in opset 13; returns how many nodes of each operator were taken apart.

    Raises:
        UnsupportedError: an operator does not exist in opset 13 and has no decomposition here.
    """
    newest = graph.opset_imports.get("", 1)
    graph.opset_imports[""] = OPSET
    counts: Counter[str] = Counter()
    names: set[str] | None = None
    for node in list(graph.graph):
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        if rule is not None:
            edit = Editor(graph, f"decompose {node.op_type}", names=names).at(node)
            names = edit.names
            edit.replace(node.outputs[0], rule(edit, node))
            edit.sweep([node])
            counts[node.op_type] += 1
        elif node.domain == "":
            _older(graph, node, newest)
    for node in graph.graph:
        if node.domain == "" and not onnx.defs.has(node.op_type, OPSET):
            raise UnsupportedError(
                f"{node.op_type} does not exist in opset {OPSET} and has no decomposition", where=node.name
            )
    graph.ir_version = 8
    return counts


def _numbers(edit: Editor, like: onnx_ir.Value) -> Callable[[float], onnx_ir.Value]:
    dtype = like.dtype or onnx_ir.DataType.FLOAT
    return lambda number: edit.initializer(onnx_ir.Tensor(np.asarray(number, dtype=dtype.numpy())), "number")


def _cast(edit: Editor, value: onnx_ir.Value, dtype: onnx_ir.DataType | None) -> onnx_ir.Value:
    if dtype is None or value.dtype == dtype:
        return value
    return edit.op("Cast", [value], {"to": int(dtype)}, dtype=dtype, shape=value.shape)


def _only_first_output(node: onnx_ir.Node) -> None:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise UnsupportedError(f"more than the first output of {node.op_type} is used", where=node.name)


def _axes(node: onnx_ir.Node, x: onnx_ir.Value) -> list[int]:
    axis, size = attribute(node, "axis", -1), rank(x)
    if axis >= 0 and size is None:
        raise UnsupportedError(f"the rank of the input of {node.op_type} is not known", where=node.name)
    return list(range(axis if axis < 0 else axis - (size or 0), 0))


def _layer_normalization(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    _only_first_output(node)
    x, scale = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert x is not None and scale is not None
    axes = _axes(node, x)
    wide = _cast(edit, x, onnx_ir.DataType.FLOAT) if x.dtype in _HALF else x
    number = _numbers(edit, wide)
    mean = edit.op("ReduceMean", [wide], {"axes": axes, "keepdims": 1})
    centred = edit.op("Sub", [wide, mean])
    variance = edit.op("ReduceMean", [edit.op("Pow", [centred, number(2.0)])], {"axes": axes, "keepdims": 1})
    root = edit.op("Sqrt", [edit.op("Add", [variance, number(attribute(node, "epsilon", 1e-5))])])
    out = edit.op("Mul", [_cast(edit, edit.op("Div", [centred, root]), x.dtype), scale])
    return out if bias is None else edit.op("Add", [out, bias])


def _rms_normalization(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    x, scale = node.inputs[0], node.inputs[1]
    assert x is not None and scale is not None
    wide = _cast(edit, x, onnx_ir.DataType.FLOAT) if x.dtype in _HALF else x
    number = _numbers(edit, wide)
    square = edit.op("Pow", [wide, number(2.0)])
    mean = edit.op("ReduceMean", [square], {"axes": _axes(node, x), "keepdims": 1})
    root = edit.op("Sqrt", [edit.op("Add", [mean, number(attribute(node, "epsilon", 1e-5))])])
    inverse = edit.op("Div", [number(1.0), root])
    return edit.op("Mul", [scale, _cast(edit, edit.op("Mul", [wide, inverse]), x.dtype)])


def _gelu(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    x = node.inputs[0]
    assert x is not None
    number = _numbers(edit, x)
    if attribute(node, "approximate", "none") == "none":
        erf = edit.op("Erf", [edit.op("Div", [x, number(math.sqrt(2.0))])])
        return edit.op("Mul", [edit.op("Mul", [x, edit.op("Add", [erf, number(1.0)])]), number(0.5)])
    cubic = edit.op("Mul", [number(0.044715), edit.op("Pow", [x, number(3.0)])])
    inner = edit.op("Mul", [edit.op("Add", [x, cubic]), number(math.sqrt(2.0 / math.pi))])
    bracket = edit.op("Add", [edit.op("Tanh", [inner]), number(1.0)])
    return edit.op("Mul", [edit.op("Mul", [number(0.5), x]), bracket])


def _hard_swish(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    x = node.inputs[0]
    assert x is not None
    number = _numbers(edit, x)
    clipped = edit.op("Clip", [edit.op("Add", [x, number(3.0)]), number(0.0), number(6.0)])
    return edit.op("Div", [edit.op("Mul", [x, clipped]), number(6.0)])


def _swish(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    x = node.inputs[0]
    assert x is not None
    alpha = attribute(node, "alpha", 1.0)
    inner = x if alpha == 1.0 else edit.op("Mul", [x, _numbers(edit, x)(alpha)])
    return edit.op("Mul", [x, edit.op("Sigmoid", [inner])])


def _cast_like(edit: Editor, node: onnx_ir.Node) -> onnx_ir.Value:
    x, like = node.inputs[0], node.inputs[1]
    assert x is not None and like is not None
    if like.dtype is None:
        raise UnsupportedError("the type that CastLike casts to is not known", where=node.name)
    return edit.op("Cast", [x], {"to": int(like.dtype)})


def _older(graph: Graph, node: onnx_ir.Node, newest: int) -> None:
    """Write a node that opset 13 has, in other form, in that form."""
    op_type = node.op_type
    if op_type.startswith("Reduce") and op_type != "ReduceSum" and len(node.inputs) > 1:
        axes = constant(node.inputs[1]) if node.inputs[1] is not None else None
        if node.inputs[1] is not None and axes is None:
            raise UnsupportedError(f"the axes of {op_type} are computed", where=node.name)
        old = node.inputs[1]
        node.resize_inputs(1)
        if axes is not None:
            node.attributes["axes"] = onnx_ir.AttrInt64s("axes", [int(a) for a in axes.reshape(-1)])
        if old is not None:
            Editor(graph, "decompose", names=set()).drop_initializer(old)
        node.attributes.pop("noop_with_empty_axes", None)
    elif op_type == "Shape" and node.attributes:
        first, last = attribute(node, "start", 0), attribute(node, "end", None)
        node.attributes.clear()
        edit = Editor(graph, "decompose Shape")
        following = node.graph
        assert following is not None
        old = node.outputs[0]
        whole = onnx_ir.Value(name=edit.fresh(f"{old.name}_whole"), type=old.type)
        whole.shape = onnx_ir.Shape([len(dims(node.inputs[0]) or ())]) if dims(node.inputs[0]) is not None else None
        shape = onnx_ir.Node("", "Shape", [node.inputs[0]], outputs=[whole], name=edit.fresh("Shape"))
        following.insert_before(node, shape)
        edit.at(node)
        end = last if last is not None else 1 << 31
        new = edit.op("Slice", [whole, edit.ints([first]), edit.ints([end]), edit.ints([0])], dtype=old.dtype)
        edit.replace(old, new)
        edit.sweep([node])
    elif op_type == "Split":
        node.attributes.pop("num_outputs", None)
    elif op_type == "Resize":
        _whole_resize(graph, node)
    elif op_type == "Cast":
        node.attributes.pop("saturate", None)
        node.attributes.pop("round_mode", None)
    elif op_type == "Reshape":
        if attribute(node, "allowzero", 0):
            raise UnsupportedError("Reshape with allowzero", where=node.name)
        node.attributes.pop("allowzero", None)


def _whole_resize(graph: Graph, node: onnx_ir.Node) -> None:
    """Scales or sizes of every axis, where only those of the last axes are given."""
    if attribute(node, "antialias", 0) or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError("Resize with antialias or keep_aspect_ratio_policy", where=node.name)
    for name in ("antialias", "keep_aspect_ratio_policy"):
        node.attributes.pop(name, None)
    if "axes" not in node.attributes:
        return
    x, size = node.inputs[0], rank(node.inputs[0])
    axes = [axis % (size or 1) for axis in attribute(node, "axes", [])]
    if size is None or axes != list(range(size - len(axes), size)) or attribute(node, "roi") is not None:
        raise UnsupportedError("Resize along other than the last axes", where=node.name)
    edit = Editor(graph, "decompose Resize").at(node)
    first = size - len(axes)
    for index, value in enumerate(node.inputs):
        if value is None or index < 2:
            continue
        if index == 2:
            before = edit.initializer(np.ones(first, np.float32), "scales")
        else:
            before = edit.op("Slice", [edit.op("Shape", [x]), edit.ints([0]), edit.ints([first]), edit.ints([0])])
        node.replace_input_with(index, edit.op("Concat", [before, value], {"axis": 0}))
    node.attributes.pop("axes")


_RULES: dict[str, Rule] = {
    "Attention": attention,
    "CastLike": _cast_like,
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "RotaryEmbedding": rotary_embedding,
    "Swish": _swish,
}


def main(arguments: list[str] | None = None) -> None:
    """Read a model, take it apart, write it and print what was taken apart."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.decompose", description=(__doc__ or "").strip())
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    options = parser.parse_args(arguments)
    try:
        graph = onnx_ir.load(options.source)
        infer_graph(graph)
        counts = decompose(graph)
    except (BurnishError, OSError) as error:
        sys.exit(str(error))
    onnx_ir.save(graph, options.target)
    for op_type, count in sorted(counts.items()):
        print(f"{count:6d} {op_type}")


if __name__ == "__main__":
    main()
