"""``MergeProducts``: products of one input become one product of all their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.excerpt import Clock, timed
from ...ir.graph import Graph, attribute, dims, is_op, module_path, tensor_of
from ...ir.rewrite import Editor
from ...ir.weights import rearranged
from ..base import Context, Outcome, Pass, Stage

RULE = "x * W1, x * W2 => split(x * [W1 W2])"
_MARGIN = 0.97
"""Part of their time that products may take at most as one, if that is measured: less is noise."""


@dataclass(frozen=True)
class MergeProducts(Pass):
    """Compute products of the same input as one, and split its result.

    Queries, keys and values, and the gate of a feed-forward block with its up projection, read the same activations.
    With their weights side by side along the output channels there is one kernel to start instead of three, which
    counts when a token is decoded, and the input is packed or quantized once. Each output channel is computed from the
    same numbers as before. Quantized weights are joined if they are quantized alike.

    Attributes:
        floats: whether products by weights in floating point are joined, too.
        measured: whether only those are joined that are faster so, by a measurement on this machine.
    """

    stage = Stage.FUSE

    floats: bool = True
    measured: bool = False

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Join what can be joined; say of products that share an input why they were not."""
        outcome = Outcome()
        if self.measured and context.clock is None:
            outcome.skipped("", "no products of the same input were joined: nothing can be timed here")
            return outcome
        edit = Editor(graph, RULE)
        shared: dict[onnx_ir.Value, list[onnx_ir.Node]] = {}
        for node in graph.graph:
            if is_op(node, "MatMul", "Gemm") and node.inputs[0] is not None and _chain(node.inputs[1]) is not None:
                shared.setdefault(node.inputs[0], []).append(node)
        known: dict[str, float | None] = {}
        for nodes in shared.values():
            if len(nodes) > 1:
                self._group(edit, nodes, outcome, context.clock, known)
        if not outcome.changed:
            outcome.skipped("", "no two products of the same input could be joined")
        return outcome

    def _group(
        self,
        edit: Editor,
        nodes: Sequence[onnx_ir.Node],
        outcome: Outcome,
        clock: Clock | None,
        known: dict[str, float | None],
    ) -> None:
        alike: dict[Any, list[_Product]] = {}
        for node in nodes:
            product = _read(node)
            if isinstance(product, str):
                outcome.missed(module_path(node), f"not joined with its siblings: {product}")
            elif not self.floats and product.dequantize is None:
                outcome.skipped(module_path(node), "not joined with its siblings: its weight is in floating point")
            else:
                alike.setdefault(product.kind, []).append(product)
        for group in alike.values():
            if len(group) > 1:
                faster: float | str | None = ""
                if self.measured and clock is not None:
                    like = repr((group[0].kind, [product.channels for product in group], dims(group[0].node.inputs[0])))
                    if like not in known:  # the same in each layer
                        known[like] = _faster(edit.graph, group, clock)
                    faster = known[like]
                if faster is None:
                    outcome.skipped(module_path(group[0].node), "not joined with its siblings: they were not timed")
                    continue
                if isinstance(faster, float):
                    if faster >= _MARGIN:
                        reason = f"joined they take {faster:.2f} times the time"
                        outcome.skipped(module_path(group[0].node), f"not joined with its siblings: {reason}")
                        continue
                    faster = f", which takes {faster:.2f} times the time"
                _join(edit, group)
                outcome.count(RULE)
                outcome.applied(module_path(group[0].node), f"{len(group)} products of one input joined{faster}")
            elif len(alike) > 1:
                reason = "its weight is stored in another way than theirs"
                outcome.missed(module_path(group[0].node), f"not joined with its siblings: {reason}")


@dataclass(frozen=True)
class _Product:
    """``x * W``, W an initializer, dequantized or not, transposed or not.

    Attributes:
        tensors: of the weight: itself, or codes, scales and zero points.
        axis: of the output channels in the stored weight.
        channels: number of output channels.
        add: the addition of a constant bias behind a MatMul, and that bias.
    """

    node: onnx_ir.Node
    transpose: onnx_ir.Node | None
    dequantize: onnx_ir.Node | None
    tensors: tuple[onnx_ir.Value, ...]
    axis: int
    channels: int
    add: onnx_ir.Node | None
    bias: onnx_ir.Value | None

    @property
    def nodes(self) -> list[onnx_ir.Node]:
        """What computes it, its bias included."""
        return [node for node in (self.dequantize, self.transpose, self.node, self.add) if node is not None]

    @property
    def kind(self) -> Any:
        """Equal for products that can be joined."""
        stored = tuple(
            (value.dtype, tuple(size for axis, size in enumerate(dims(value) or ()) if axis != self._axis(value)))
            for value in self.tensors
        )
        attributes = [] if self.dequantize is None else _attributes(self.dequantize)
        return (
            self.node.op_type,
            repr(_attributes(self.node)),
            self.transpose is not None,
            repr(attributes),
            stored,
            self.bias is not None,
        )

    def _axis(self, value: onnx_ir.Value) -> int:
        return 0 if len(dims(value) or ()) == 1 else self.axis


def _attributes(node: onnx_ir.Node) -> list[tuple[str, Any]]:
    return sorted((name, attribute(node, name)) for name in node.attributes)


def _chain(value: onnx_ir.Value | None) -> list[onnx_ir.Node] | None:
    """The nodes between a constant weight and its product, last first: Transpose, DequantizeLinear, or nothing."""
    nodes: list[onnx_ir.Node] = []
    for op in ("Transpose", "DequantizeLinear"):
        node = None if value is None else value.producer()
        if is_op(node, op):
            assert node is not None
            nodes.append(node)
            value = node.inputs[0]
    return nodes if tensor_of(value) is not None else None


def _faster(graph: Graph, group: Sequence[_Product], clock: Clock) -> float | None:
    """What products take as one, as a part of what they take by themselves; None if it is not known."""
    members = {node for product in group for node in product.nodes}
    nodes = [node for node in graph.graph if node in members]
    taken = timed(graph, nodes, {"apart": lambda small: None, "joined": _join_alone}, clock)
    return None if taken is None else taken["joined"] / taken["apart"]


def _join_alone(graph: Graph) -> None:
    products = [_read(node, alone=True) for node in graph.graph if is_op(node, "MatMul", "Gemm")]
    _join(Editor(graph, "timed"), [product for product in products if isinstance(product, _Product)])


def _read(node: onnx_ir.Node, alone: bool = False) -> _Product | str:
    chain = _chain(node.inputs[1])
    assert chain is not None
    transpose = next((n for n in chain if is_op(n, "Transpose")), None)
    dequantize = next((n for n in chain if is_op(n, "DequantizeLinear")), None)
    if transpose is not None and attribute(transpose, "perm", [1, 0]) != [1, 0]:
        return "its weight is no matrix"
    turned = transpose is not None
    if is_op(node, "Gemm"):
        if attribute(node, "transA", 0):
            return "its input is transposed"
        turned ^= bool(attribute(node, "transB", 0))
    stored = dequantize.inputs if dequantize is not None else [chain[-1].inputs[0] if chain else node.inputs[1]]
    tensors = tuple(value for value in stored if value is not None)
    if len(tensors) != len(stored) or any(not value.is_initializer() for value in tensors):
        return "its weight is no initializer"
    weight = tensors[0]
    sizes = dims(weight)
    if sizes is None or len(sizes) != 2 or not all(isinstance(size, int) for size in sizes):
        return "its weight is no matrix"
    links = [n.outputs[0] for n in chain] + list(tensors)
    if any(len(list(value.uses())) != 1 or value.is_graph_output() for value in links):
        return "its weight has other readers"
    axis = 0 if turned else 1
    channels = sizes[axis]
    assert isinstance(channels, int)
    if any(len(dims(value) or ()) > 2 or not (dims(value) or ()) for value in tensors[1:]):
        return "its weight has one scale for all channels"
    if any(len(dims(v) or ()) == 1 and dims(v) != (channels,) for v in tensors[1:]):
        return "its weight has no scale for each output channel"
    if not alone and any(value.is_graph_output() for value in node.outputs):
        return "it is an output of the graph"
    add, bias = None, None
    if is_op(node, "Gemm"):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (tensor_of(bias) is None or dims(bias) != (channels,)):
            return "its bias is no constant vector"
    else:
        add, bias = _added(node, channels, alone)
    return _Product(node, transpose, dequantize, tensors, axis, channels, add, bias)


def _added(node: onnx_ir.Node, channels: int, alone: bool) -> tuple[onnx_ir.Node | None, onnx_ir.Value | None]:
    """The addition of a constant vector that alone reads a product."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or not is_op(uses[0].node, "Add") or uses[0].node.graph is not node.graph:
        return None, None
    add = uses[0].node
    bias = add.inputs[1 - uses[0].idx]
    if tensor_of(bias) is None or dims(bias) != (channels,) or (not alone and add.outputs[0].is_graph_output()):
        return None, None
    return add, bias


def _join(edit: Editor, group: Sequence[_Product]) -> None:
    first = group[0]
    # At the first product: what they read is there before it, and whatever reads one of them comes after.
    edit.at(first.node, [product.node for product in group])
    values = []
    for index, value in enumerate(first.tensors):
        parts = [product.tensors[index] for product in group]
        values.append(edit.initializer(_joined(parts, first._axis(value)), f"{value.name}.joined"))
    result = first.node.outputs[0]
    weight = values[0]
    if first.dequantize is not None:
        weight = edit.op(
            "DequantizeLinear", values, dict(_attributes(first.dequantize)), dtype=first.dequantize.outputs[0].dtype,
            shape=weight.shape,
        )  # fmt: skip
    if first.transpose is not None:
        weight = edit.op("Transpose", [weight], {"perm": [1, 0]})
    inputs: list[onnx_ir.Value | None] = [first.node.inputs[0], weight]
    bias = None
    if first.bias is not None:
        biases = [product.bias for product in group if product.bias is not None]
        bias = edit.initializer(_joined(biases, 0), f"{first.bias.name}.joined")
    if bias is not None and first.add is None:
        inputs.append(bias)
    sizes = [product.channels for product in group]
    shape = None if result.shape is None else onnx_ir.Shape([*result.shape[:-1], sum(sizes)])
    joined = edit.op(
        first.node.op_type, inputs, dict(_attributes(first.node)), dtype=result.dtype, shape=shape,
        hint=first.node.name,
    )  # fmt: skip
    if bias is not None and first.add is not None:
        joined = edit.op("Add", [joined, bias], dtype=result.dtype, shape=shape)
    split = edit.ops("Split", [joined, edit.ints(sizes, "split")], {"axis": -1}, outputs=len(group), infer_types=False)
    for part, product in zip(split, group, strict=True):
        old = (product.add or product.node).outputs[0]
        part.type, part.shape = old.type, old.shape
        edit.replace(old, part)
    edit.sweep([product.add or product.node for product in group])


def _joined(values: Sequence[onnx_ir.Value], axis: int) -> onnx_ir.TensorProtocol:
    """The tensors of initializers behind each other along ``axis``; read when the result is read, or now if small."""
    tensors = [value.const_value for value in values]
    assert all(tensor is not None for tensor in tensors)
    first = tensors[0]
    assert first is not None
    shape = list(first.shape.numpy())
    shape[axis] = sum(tensor.shape.numpy()[axis] for tensor in tensors if tensor is not None)

    def join(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        return np.concatenate(arrays, axis=axis)

    # What is there already stays a constant that others can look at (zero points that are all the same, for one).
    if not any(isinstance(tensor, onnx_ir.LazyTensor | onnx_ir.ExternalTensor) for tensor in tensors):
        return onnx_ir.Tensor(join([tensor.numpy() for tensor in tensors if tensor is not None]), dtype=first.dtype)
    return rearranged([tensor for tensor in tensors if tensor is not None], join, shape)
