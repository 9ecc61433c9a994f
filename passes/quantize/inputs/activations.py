"""Inputs of products in 8 bits, with a scale of its own for each token, computed from the input at hand.

A row x of the input becomes ``q = round(x / s) + z`` with ``s = (max x - min x) / 255`` and ``z = round(-min x / s)``,
zero included in the range (survey, equations 3 and 6; one scale per token as in ZeroQuant, Yao et al. 2022, section
4.1). A range with two ends of its own pays: what a GELU or a layer norm makes is one-sided, and on the encoder MiniLM
it takes away more than half of the error of a symmetric range. A product by weights with one scale per channel is then
an integer product times the scale of the row and the scale of the column. In the graph this stands in ONNX's own
operators, a ``QuantizeLinear`` whose blocks are the rows and the ``DequantizeLinear`` that undoes it; no calibration is
needed. The codes are signed, 128 less: unsigned ones ONNX Runtime fuses into a kernel that refuses scales of rows.
Where calibration inputs found one z for all rows (:mod:`.zero_points`), ``s = max(max x / (255 - z), -min x / z)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir

from ....ir.graph import dims, rank
from ....ir.rewrite import Editor
from ..scheme import Scheme
from ..targets import Weight
from .outliers import Outliers, without

RULE = "quantize activations"
SMALLEST_PRODUCT = 192 * 192
"""A product with fewer weights stays as it is: at 128 tokens, quantizing its input costs what int8 saves."""
_LARGEST = 255
_TINY = np.finfo(np.float32).tiny


def obstacle(weight: Weight) -> str | None:
    """Why the products by ``weight`` cannot take int8 inputs, or None; an embedding has no such input."""
    for node in weight.products:
        x = node.inputs[0]
        if x is None or x.dtype != onnx_ir.DataType.FLOAT:
            name = "unknown type" if x is None or x.dtype is None else x.dtype.name
            return f"no kernel quantizes activations of {name}"
        if (rank(x) or 0) < 2:
            return "its input is a vector or of unknown rank"
    if weight.products and weight.size < SMALLEST_PRODUCT:
        return f"too small to pay in int8: {weight.size} weights, fewer than {SMALLEST_PRODUCT}"
    return None


def by_token(weight: Weight, scheme: Scheme) -> bool:
    """Whether the inputs of the products by a weight are quantized in the graph, token by token."""
    dynamic = scheme.activations is not None and scheme.activations.dynamic
    return dynamic and not scheme.by_kernel and not weight.tables


def inputs_by_token(chosen: Sequence[tuple[Weight, Scheme]]) -> list[onnx_ir.Value]:
    """What is quantized token by token, each once, of weights and their schemes."""
    read = [node.inputs[0] for weight, scheme in chosen if by_token(weight, scheme) for node in weight.products]
    return [value for value in dict.fromkeys(read) if value is not None]


def quantize_inputs(
    edit: Editor,
    products: Sequence[onnx_ir.Node],
    order: Mapping[onnx_ir.Node, int],
    outliers: Outliers | None = None,
    zero_points: Mapping[onnx_ir.Value, int] = MappingProxyType({}),
) -> dict[onnx_ir.Value, list[onnx_ir.Node]]:
    """Let ``products`` read their left operand through 8 bits; one they share is quantized once.

    Args:
        edit: of the main graph.
        products: ``MatMul`` and ``Gemm`` nodes whose left operand is float32 [..., tokens, channels].
        order: position of each node in the graph.
        outliers: channels that count as zero here, because they are multiplied elsewhere.
        zero_points: of the inputs that have one for all tokens, see ``ZERO_POINTS``.

    Returns:
        The products by the value they read.
    """
    readers: dict[onnx_ir.Value, list[onnx_ir.Node]] = {}
    for node in sorted(products, key=lambda node: order[node]):
        x = node.inputs[0]
        assert x is not None
        readers.setdefault(x, []).append(node)
    if not readers:
        return {}
    last = edit.ints([-1], "last_axis")
    zero = edit.initializer(np.asarray(0, np.float32), "zero")
    middle = edit.initializer(np.asarray(128, np.float32), "middle")
    step = edit.initializer(np.asarray(1 / _LARGEST, np.float32), "int8_step")
    tiny = edit.initializer(np.asarray(_TINY, np.float32), "smallest_scale")
    for x, nodes in readers.items():
        edit.at(nodes[0], nodes)
        name = x.name or "input"
        code = zero_points.get(x)
        mask = None if outliers is None else outliers.mask(x)
        if mask is not None:
            x = without(edit, x, mask)
        low, high = (edit.op(op, [x, last], {"keepdims": 1}) for op in ("ReduceMin", "ReduceMax"))
        if code is not None:
            up = edit.initializer(np.asarray(1 / (_LARGEST - code), np.float32), "step_above")
            down = edit.initializer(np.asarray(-1 / code, np.float32), "step_below")
            steps = [edit.op("Mul", [high, up]), edit.op("Mul", [low, down])]
            scale = edit.op("Max", [*steps, tiny], hint=f"{name}.scale")
            whole = edit.initializer(np.asarray([code - 128], np.int8), f"{name}.zero")
            offset = edit.op("Expand", [whole, edit.op("Shape", [scale])], hint=f"{name}.zero_point")
        else:
            high, low = edit.op("Max", [high, zero]), edit.op("Min", [low, zero])
            # A row of zeros has no scale: any will do but zero.
            scale = edit.op("Max", [edit.op("Mul", [edit.op("Sub", [high, low]), step]), tiny], hint=f"{name}.scale")
            offset = edit.op("Round", [edit.op("Div", [edit.op("Neg", [low]), scale])])
            offset = edit.op("Sub", [offset, middle])
            offset = edit.op("Cast", [offset], {"to": int(onnx_ir.DataType.INT8)}, hint=f"{name}.zero_point")
        block = {"axis": -1, "block_size": _channels(nodes[0])}
        codes = edit.op("QuantizeLinear", [x, scale, offset], block, hint=f"{name}.quantize")
        restored = edit.op(
            "DequantizeLinear", [codes, scale, offset], block, dtype=x.dtype, shape=x.shape, hint=f"{name}.dequantize"
        )
        for node in nodes:
            node.replace_input_with(0, restored)
    return readers


def _channels(product: onnx_ir.Node) -> int:
    """Input channels, from the weight, whose shape is always known."""
    weight = dims(product.inputs[1])
    assert weight is not None
    transposed = product.attributes.get("transB")
    size = weight[1 if transposed is not None and transposed.as_int() else 0]
    assert isinstance(size, int)
    return size
