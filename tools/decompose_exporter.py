"""The habits of the exporters of 2021, on top of ``tools/decompose.py``: one fixed form for counting operators.

- Weights of linear layers are transposed when the file is written, not when it runs.
- Attention hides what a mask of booleans hides by adding −10000 to it, and guards no row that sees nothing.
- ReLU6 is a Clip.
- A bias of a product of matrices is an Add of its own (``Gemm`` on rows of a batch came from no linear layer).
- ``x.view(x.size(0), x.size(1), heads, -1)`` asks for each size when it runs: Shape, Gather, Unsqueeze, and Concat for
  the Reshape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir

from ..ir.graph import Graph, attribute, constant, dims, producer, rank, tensor_of
from ..ir.infer import infer_graph
from ..ir.rewrite import Editor
from ..ir.weights import transposed
from .decompose import decompose

_HIDDEN = -10000.0


def decompose_as_exported(graph: Graph) -> Counter[str]:
    """Rewrite the main graph in place as an exporter of 2021 wrote it; returns what was taken apart, by operator.

    Rows of an attention that a mask hides whole come out as the mean of all values instead of zero, as they did then.

    Raises:
        UnsupportedError: an operator does not exist in opset 13 and has no decomposition.
    """
    _additive_masks(graph)
    counts = decompose(graph)
    _unguarded(graph)
    _clips(graph)
    _transposed_weights(graph)
    _separate_biases(graph)
    infer_graph(graph)
    _asked_sizes(graph)
    return counts


def _additive_masks(graph: Graph) -> None:
    """Masks of booleans become numbers to add, once for all attentions that share one."""
    made: dict[onnx_ir.Value, onnx_ir.Value] = {}
    edit = Editor(graph, "decompose mask")
    for node in list(graph.graph):
        if node.op_type != "Attention" or len(node.inputs) < 4 or node.inputs[3] is None:
            continue
        mask, dtype = node.inputs[3], node.inputs[0].dtype if node.inputs[0] is not None else None
        if mask.dtype != onnx_ir.DataType.BOOL or dtype is None:
            continue
        if mask not in made:
            edit.at(node)
            seen = edit.op("Cast", [mask], {"to": int(dtype)}, dtype=dtype, shape=mask.shape)
            numbers = [edit.initializer(np.asarray(n, dtype.numpy()), "number") for n in (1.0, _HIDDEN)]
            made[mask] = edit.op("Mul", [edit.op("Sub", [numbers[0], seen]), numbers[1]])
        node.replace_input_with(3, made[mask])


def _unguarded(graph: Graph) -> None:
    """``Where(IsNaN(p), 0, p)`` behind a softmax goes: no exporter wrote it then."""
    edit = Editor(graph, "decompose guard")
    for node in list(graph.graph):
        nan = producer(node.inputs[0], "IsNaN") if node.op_type == "Where" else None
        if nan is not None and nan.inputs[0] is node.inputs[2] and producer(node.inputs[2], "Softmax") is not None:
            assert node.inputs[2] is not None
            edit.at(node).replace(node.outputs[0], node.inputs[2])
            edit.sweep([node])


def _clips(graph: Graph) -> None:
    """``min(max(x, low), high)`` with constant numbers was one operator."""
    edit = Editor(graph, "decompose Clip")
    for node in list(graph.graph):
        inner = producer(node.inputs[0], "Max") if node.op_type == "Min" else None
        if inner is None or len(node.inputs) != 2 or len(inner.inputs) != 2:
            continue
        limits = [inner.inputs[1], node.inputs[1]]
        if all(tensor_of(limit) is not None and rank(limit) == 0 for limit in limits):
            edit.at(node).replace(node.outputs[0], edit.op("Clip", [inner.inputs[0], *limits]))
            edit.sweep([node])


def _transposed_weights(graph: Graph) -> None:
    edit = Editor(graph, "decompose weight")
    for node in list(graph.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        tensor = tensor_of(weight)
        if weight is None or tensor is None:
            continue
        perm = attribute(node, "perm") or list(reversed(range(len(tensor.shape))))
        edit.at(node).replace(node.outputs[0], edit.initializer(transposed(tensor, perm), f"{weight.name}.transposed"))
        edit.sweep([node])


def _separate_biases(graph: Graph) -> None:
    edit = Editor(graph, "decompose Gemm")
    for node in list(graph.graph):
        if node.op_type != "Gemm" or attribute(node, "transA", 0) or any(
            attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta")
        ):  # fmt: skip
            continue
        edit.at(node)
        weight = node.inputs[1]
        assert weight is not None
        tensor = tensor_of(weight)
        if attribute(node, "transB", 0):
            if tensor is None:
                continue
            weight = edit.initializer(transposed(tensor, (1, 0)), f"{weight.name}.transposed")
        result = edit.op("MatMul", [node.inputs[0], weight])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = edit.op("Add", [result, node.inputs[2]])
        edit.replace(node.outputs[0], result)
        edit.sweep([node])


def _asked_sizes(graph: Graph) -> None:
    """Leading sizes that a constant target of a Reshape repeats are asked for when it runs."""
    edit = Editor(graph, "decompose view")
    for node in list(graph.graph):
        if node.op_type != "Reshape" or tensor_of(node.inputs[0]) is not None:
            continue
        target = constant(node.inputs[1], limit=16)
        source, out = node.inputs[0], dims(node.outputs[0])
        if target is None or source is None or out is None or not out:
            continue
        # Rows [batch * sequence, n] were views of [batch, sequence, n], and it is that one's sizes that come back.
        asked = source
        while rank(asked) == 2 and (before := _rows_of(asked)) is not None:
            asked = before
        edit.at(node)
        parts = _parts(edit, asked, target, out, source)
        if parts is None:
            continue
        old = node.inputs[1]
        node.replace_input_with(1, edit.op("Concat", parts, {"axis": 0}, shape=[len(parts)]))
        if old is not None:
            edit.drop_initializer(old)


def _rows_of(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """What rows were a view of, through a product of rows and its bias."""
    node = value.producer()
    for _ in range(3):
        if node is None:
            return None
        if node.op_type == "Reshape":
            return node.inputs[0]
        if node.op_type not in ("MatMul", "Add") or node.inputs[0] is None:
            return None
        node = node.inputs[0].producer()
    return None


def _parts(
    edit: Editor,
    asked: onnx_ir.Value,
    target: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    out: Sequence[int | onnx_ir.SymbolicDim],
    source: onnx_ir.Value,
) -> list[onnx_ir.Value] | None:
    """One tensor of one size for each dimension of the target; None if it repeats no size of ``asked``."""
    sizes, parts, found = dims(asked) or (), [], 0

    def ask(axis: int) -> onnx_ir.Value:
        shape = edit.op("Shape", [asked], shape=[len(sizes)])
        size = edit.op("Gather", [shape, edit.ints(axis, "axis")], {"axis": 0}, shape=[])
        return edit.op("Unsqueeze", [size, edit.ints([0], "axes")], shape=[1])

    flattened = len(out) == 2 and len(dims(source) or ()) > 2
    for axis, size in enumerate(out):
        if flattened and axis == 0:
            parts.append(edit.ints([-1]))
        elif flattened and size == sizes[-1]:
            parts.append(ask(len(sizes) - 1))
            found += 1
        elif not flattened and axis < 2 and axis < len(sizes) and size == sizes[axis]:
            parts.append(ask(axis))
            found += 1
        else:
            # A 0 copies a size of the source: where that is asked for in another place, the number itself.
            given = int(target[axis])
            parts.append(edit.ints([size if given == 0 and isinstance(size, int) else given]))
    if found:
        return parts
    edit.sweep(reversed(edit.made))
    for part in parts:
        edit.drop_initializer(part)
    return None
