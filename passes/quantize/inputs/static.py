"""Static 8-bit activations: one scale and zero point a tensor, from calibration inputs, written as QDQ pairs.

A product reads its input through a ``QuantizeLinear`` and the ``DequantizeLinear`` that undoes it. A convolution has
such a pair on both sides, and between convolutions whatever has an int8 kernel runs on codes, too (survey, section
3.1; the runtime turns a convolution between pairs into ``QLinearConv``). Nothing else is touched: an operator without
an int8 kernel, or from which no further convolution is reached on codes, computes in floating point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from ....ir.errors import ModelError
from ....ir.graph import Graph, attribute, constant, is_op, module_path, tensor_of
from ....ir.noise import WEIGHT_NOISE, decibels
from ....ir.rewrite import Editor
from ...base import Context, Outcome
from ...statistics import Histogram
from ..methods.rtn import as_float32
from .histogram import Range, choose

RULE = "quantize activations"
OPERATORS = ("Conv", "ConvTranspose")
"""Convolutions; those without an int8 kernel are refused one by one."""
_JOINING = ("Add", "Mul", "Concat")
_COMPUTING = ("Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool")
_MOVING = ("MaxPool", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Split", "Slice")
"""What leaves numbers as they are: its output has the range of its input."""
_INSIDE = 99.999
"""Percentile for a value that does not leave a region."""
_TINY = np.finfo(np.float32).tiny


@dataclass
class Region:
    """What runs on codes.

    Attributes:
        nodes: convolutions, and what runs on codes between them.
        made: values that only they make, in graph order: all readers get them through codes.
        read: values made elsewhere that they read through codes.
        same: value whose range a moved value has, by that value.
    """

    nodes: list[onnx_ir.Node] = field(default_factory=list)
    made: list[onnx_ir.Value] = field(default_factory=list)
    read: list[onnx_ir.Value] = field(default_factory=list)
    same: dict[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)

    def root(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """The value whose range ``value`` has."""
        while value in self.same:
            value = self.same[value]
        return value

    def leaves(self, value: onnx_ir.Value) -> bool:
        """Whether only what is no member reads a value."""
        return not any(use.node in self.nodes for use in value.uses())

    @property
    def observed(self) -> list[onnx_ir.Value]:
        """Values whose ranges are needed."""
        return list(dict.fromkeys(self.root(value) for value in (*self.read, *self.made)))


def obstacle(node: onnx_ir.Node, graph: Graph) -> str | None:
    """Why a convolution cannot run on codes, or None."""
    if not is_op(node, "Conv"):
        return f"{node.op_type} has no kernel for 8-bit weights"
    x, w = node.inputs[:2]
    tensor = tensor_of(w)
    if node.graph is not graph.graph:
        return "the convolution is inside a subgraph"
    if tensor is None or (len(node.inputs) > 2 and node.inputs[2] is not None and tensor_of(node.inputs[2]) is None):
        return "its weight or bias is not constant"
    if x is None or x.dtype != onnx_ir.DataType.FLOAT or tensor_of(x) is not None:
        return "its input is constant or not float32"
    return None


def region(graph: Graph, convolutions: Sequence[onnx_ir.Node]) -> Region:
    """Convolutions and what can run on codes between them."""
    chosen = set(convolutions)
    on_codes: dict[onnx_ir.Node, list[onnx_ir.Value]] = {}
    makers: dict[onnx_ir.Value, onnx_ir.Node] = {}
    for node in graph.graph:
        if node in chosen or (_carries(node) and all(value in makers for value in _data(node))):
            outputs = [_after(value) for value in node.outputs]
            on_codes[node] = outputs
            makers.update(dict.fromkeys(outputs, node))
    useful = set(chosen)
    for node in reversed(graph.graph):
        if node in on_codes and node not in useful:
            readers = {use.node for value in on_codes[node] for use in value.uses()}
            if readers & useful:
                useful.add(node)
    found = Region()
    for node, outputs in on_codes.items():
        if node not in useful:
            continue
        found.nodes.append(node)
        found.made += outputs
        inputs = _data(node)
        found.read += [v for v in inputs if makers.get(v) not in useful]
        if node.op_type in _MOVING:
            found.same.update(dict.fromkeys(outputs, inputs[0]))
    found.read = list(dict.fromkeys(found.read))
    return found


def _carries(node: onnx_ir.Node) -> bool:
    if not is_op(node, *_JOINING, *_COMPUTING, *_MOVING) or not _data(node):
        return False
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return False
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") == "cubic":
        return False
    # A constant operand has no range that was observed.
    own = node.inputs if node.op_type in _JOINING else node.inputs[:1]
    return all(v is not None and tensor_of(v) is None and v.dtype == onnx_ir.DataType.FLOAT for v in own)


def _data(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """The operands that are activations."""
    inputs = node.inputs if node.op_type in _JOINING else node.inputs[:1]
    return [value for value in inputs if value is not None]


def _after(value: onnx_ir.Value) -> onnx_ir.Value:
    """``value`` behind the ``Relu`` or ``Clip`` at zero that alone reads it: the range of the codes does its work."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return value
    reader = next(iter(uses)).node
    clips = is_op(reader, "Clip") and reader.inputs[0] is value and constant(reader.inputs[1], limit=1) == 0
    return reader.outputs[0] if is_op(reader, "Relu") or clips else value


class Ranges:
    """What runs on codes in a graph, and the ranges of it: made before anything is rewritten.

    Args:
        graph: as it is.
        convolutions: to be rounded.
        products: ``MatMul`` and ``Gemm`` nodes whose left operand is to be quantized.
        context: gives the histograms.
        method: of :func:`~.histogram.choose`, or ``"auto"``.
        percentile: for the method of that name.
        known: ranges that are chosen already.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """

    def __init__(
        self,
        graph: Graph,
        convolutions: Sequence[onnx_ir.Node],
        products: Sequence[onnx_ir.Node],
        context: Context,
        method: str,
        percentile: float,
        known: Mapping[onnx_ir.Value, Range] | None = None,
    ) -> None:
        self.region = region(graph, convolutions)
        self.products = list(products)
        self._spans: dict[onnx_ir.Value, Range] = {}
        made = set(self.region.made)
        self.inputs = list(dict.fromkeys(x for n in products if (x := n.inputs[0]) is not None and x not in made))
        chosen = dict(known or {})
        values = [v for v in dict.fromkeys([*self.region.observed, *self.inputs]) if v not in chosen]
        found = context.statistics(values, Histogram()) if values else {}
        for value in values:
            # An outlier of a token is what a transformer works with (SmolLM2 on news: perplexity 37 by the full range,
            # 43 by least square), and one that leaves for the head of a detector is a find; inside, one number in
            # 100,000 is noise (YOLOv8n: boxes overlap those of float32 by 0.97 then, 0.91 by least square).
            whole = value in self.inputs or self.region.leaves(value)
            how, share = (method, percentile) if method != "auto" else ("minmax" if whole else "percentile", _INSIDE)
            chosen[value] = choose(found[value.name or ""], how, percentile=share)
        for value in (*self.region.read, *self.region.made, *self.inputs):
            self._spans[value] = chosen[self.region.root(value)]
        self.convolutions = {node: self._spans[node.inputs[0]] for node in convolutions if node.inputs[0] is not None}

    def span(self, value: onnx_ir.Value) -> Range:
        """The range of a value."""
        return self._spans[value]


def apply(edit: Editor, ranges: Ranges, outcome: Outcome) -> list[dict[str, Any]]:
    """Put everything on codes that was planned.

    Args:
        edit: of the main graph.
        ranges: the plan.
        outcome: gets a remark for each convolution and each quantized value that is an input of products.

    Returns:
        Figures of each convolution.

    Raises:
        ModelError: a weight is infinite or not a number.
    """
    figures = []
    if not ranges.inputs and not ranges.region.nodes:
        return []
    order = {node: i for i, node in enumerate(edit.graph.graph)}
    inputs = set(ranges.inputs)
    products = [node for node in ranges.products if node.inputs[0] in inputs]
    for value, nodes in read_through(edit, products, ranges.span, order).items():
        outcome.count(RULE)
        span = ranges.span(value)
        what = f"input quantized with one scale from calibration inputs, once for {len(nodes)} products"
        outcome.applied(module_path(nodes[0]), what, low=span.low, high=span.high)
    outcome.count(RULE, insert(edit, ranges))
    for node, span in ranges.convolutions.items():
        try:
            made = convolution(edit, node, span)
        except FloatingPointError as error:
            where = f"weight {node.inputs[1].name if node.inputs[1] else ''!r}"
            raise ModelError(f"{error}", where=where, fix="exclude it, or repair the model") from error
        figures.append(made)
        outcome.count("quantize weights")
        what = "8-bit symmetric, one scale per channel, activations in 8 bits, one scale per tensor"
        outcome.applied(module_path(node), what, **made)
    between = [node for node in ranges.region.nodes if not is_op(node, *OPERATORS)]
    if between:
        kinds = Counter(node.op_type for node in between)
        listed = ", ".join(f"{kind} × {count}" for kind, count in sorted(kinds.items()))
        outcome.applied("", f"runs on codes between convolutions: {listed}", **kinds)
    return figures


def read_through(
    edit: Editor,
    products: Sequence[onnx_ir.Node],
    span: Callable[[onnx_ir.Value], Range],
    order: Mapping[onnx_ir.Node, int],
) -> dict[onnx_ir.Value, list[onnx_ir.Node]]:
    """Let products read their left operand through codes of its range; one that they share is quantized once.

    Returns:
        The products by the value they read.
    """
    readers: dict[onnx_ir.Value, list[onnx_ir.Node]] = {}
    for node in sorted(products, key=lambda node: order[node]):
        if node.inputs[0] is not None:
            readers.setdefault(node.inputs[0], []).append(node)
    for value, nodes in readers.items():
        edit.at(nodes[0], nodes)
        restored = pair(edit, value, span(value))
        for node in nodes:
            node.replace_input_with(0, restored)
    return readers


def insert(edit: Editor, ranges: Ranges) -> int:
    """Put a pair of ``QuantizeLinear`` and ``DequantizeLinear`` on every value of a region; how many were put."""
    found = ranges.region
    members = set(found.nodes)
    for value in found.read:
        restored = _pair(edit, value, ranges.span(value))
        for use in tuple(value.uses()):
            if use.node in members:
                use.node.replace_input_with(use.idx, restored)
    for value in found.made:
        _replace_readers(edit, value, _pair(edit, value, ranges.span(value)))
    return len(found.read) + len(found.made)


def _replace_readers(edit: Editor, value: onnx_ir.Value, pair: onnx_ir.Value) -> None:
    """Let all but the pair itself read ``value`` through the pair."""
    restore = pair.producer()
    codes = None if restore is None or restore.inputs[0] is None else restore.inputs[0].producer()
    assert codes is not None
    edit.replace(value, pair)
    codes.replace_input_with(0, value)


def _pair(edit: Editor, value: onnx_ir.Value, span: Range) -> onnx_ir.Value:
    maker = value.producer()
    nodes = list(edit.graph.graph)
    place = 0 if maker is None else nodes.index(maker) + 1
    readers = [use.node for use in value.uses()]
    edit.at(nodes[place] if place < len(nodes) else None, [maker] if maker is not None else readers[:1])
    return pair(edit, value, span)


def pair(edit: Editor, value: onnx_ir.Value, span: Range) -> onnx_ir.Value:
    """``value`` through 8-bit codes of a range, inserted where the editor stands."""
    name = value.name or "input"
    scale = edit.initializer(np.asarray(span.scale), f"{name}.scale")
    zero = edit.initializer(np.asarray(span.zero_point), f"{name}.zero_point")
    codes = edit.op("QuantizeLinear", [value, scale, zero], hint=f"{name}.quantize")
    return edit.op(
        "DequantizeLinear", [codes, scale, zero], dtype=value.dtype, shape=value.shape, hint=f"{name}.dequantize"
    )


def convolution(edit: Editor, node: onnx_ir.Node, span: Range) -> dict[str, Any]:
    """Round weights and bias of a convolution: int8 with a scale per output channel, int32 in steps of both scales.

    Args:
        edit: of the main graph.
        node: reads its input through a pair already.
        span: range of its input.

    Returns:
        Figures for the report.

    Raises:
        FloatingPointError: a weight is infinite or not a number.
    """
    value = node.inputs[1]
    tensor = tensor_of(value)
    assert value is not None and tensor is not None
    weights = as_float32(tensor.numpy())
    n = weights.shape[0]
    largest = np.abs(weights.reshape(n, -1)).max(axis=1, initial=0)
    if not np.isfinite(largest).all():
        raise FloatingPointError("a weight is infinite or not a number")
    scales = np.where(largest >= 127 * _TINY, largest / 127, 1).astype(np.float32)
    by_channel = scales.reshape(n, *[1] * (weights.ndim - 1))
    codes = np.clip(np.rint(weights / by_channel), -127, 127).astype(np.int8)
    error = weights - codes * by_channel
    name = value.name or "weight"
    edit.at(node, [node])
    ready = [edit.initializer(codes, f"{name}.codes"), edit.initializer(scales, f"{name}.scales")]
    restored = edit.op(
        "DequantizeLinear", ready, {"axis": 0}, dtype=value.dtype, shape=value.shape, hint=f"{name}.dequantize"
    )
    old = [value]
    node.replace_input_with(1, restored)
    size = codes.nbytes + scales.nbytes
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = node.inputs[2]
        floats = tensor_of(bias)
        assert floats is not None
        steps = (scales.astype(np.float64) * float(span.scale)).astype(np.float32)
        steps[steps < _TINY] = 1
        whole = np.clip(np.rint(floats.numpy().astype(np.float64) / steps), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        label = bias.name or "bias"
        parts = [edit.initializer(whole, f"{label}.codes"), edit.initializer(steps, f"{label}.scales")]
        node.replace_input_with(
            2,
            edit.op(
                "DequantizeLinear", parts, {"axis": 0}, dtype=bias.dtype, shape=bias.shape, hint=f"{label}.dequantize"
            ),
        )
        old.append(bias)
        size += whole.nbytes + steps.nbytes
    for one in old:
        if one.is_initializer() and not one.uses():
            edit.drop_initializer(one)
        elif (maker := one.producer()) is not None:
            edit.sweep([maker])
    power = float((weights.astype(np.float64) ** 2).sum())
    return {
        "weight": name,
        "channels": n,
        "weights": int(weights.size),
        "bits": 8,
        "group_size": int(weights[0].size),
        "bytes": size,
        "bits_per_weight": round(size * 8 / weights.size, 4),
        WEIGHT_NOISE: decibels(power, float((error.astype(np.float64) ** 2).sum())),
    }
