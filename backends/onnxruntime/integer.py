"""Lowering of products whose two operands are in 8 bits to ``MatMulIntegerToFloat``.

The kernel takes unsigned activations and signed weights: the other way round, or both signed, it is 20 times slower.
It takes one scale for all activations, so the scales of the tokens are multiplied to its result, and a bias is added
after that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, module_path, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.symbolic import known
from ...ir.weights import View, lazy
from . import kernels
from .nbits import CONTRIB, Quantized, read, scale_and_add, users

RULE = "quantize, dequantize and multiply => MatMulIntegerToFloat"
_FLOAT, _UNSIGNED, _SIGNED = "tensor(float)", "tensor(uint8)", "tensor(int8)"
_OFFSET = 128
"""Of unsigned codes: what stands for zero."""


@dataclass
class _Stored:
    """Initializers of one weight: int8 codes as they lie in the graph, float32 scales [N]."""

    weight: Quantized
    codes: onnx_ir.Value
    scales: onnx_ir.Value


def lower_integer(graph: Graph) -> list[Remark]:
    """Turn products of inputs quantized by token and weights quantized by channel into integer products.

    An input that several products read is quantized once, a weight that several nodes read is stored once, an
    embedding included. What cannot be lowered stays as it is.
    """
    lowering = _Lowering(graph)
    weights = [n for n in graph.graph if is_op(n, "DequantizeLinear") and tensor_of(n.inputs[0]) is not None]
    for node in sorted(weights, key=lowering.first_reader):
        lowering.weight(node)
    return lowering.remarks


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.edit = Editor(graph, RULE)
        self.remarks: list[Remark] = []
        self._order = {node: at for at, node in enumerate(graph.graph)}
        self._codes: dict[onnx_ir.Node, onnx_ir.Value] = {}
        self._offsets: dict[tuple[str, ...], onnx_ir.Value] = {}
        self._constants: dict[str, onnx_ir.Value] = {}

    def first_reader(self, node: onnx_ir.Node) -> int:
        """Where in the graph the first product or embedding of a weight stands."""
        return min((self._order.get(user, 0) for user, _, _ in users(node.outputs[0])), default=0)

    def weight(self, node: onnx_ir.Node) -> None:
        """Lower the products and embeddings of one dequantized weight."""
        readers = users(node.outputs[0])
        products = []
        for user, index, turned in readers:
            if is_op(user, "MatMul", "Gemm") and index == 1 and user.graph is self.edit.graph.graph:
                pair = _quantized_input(user)
                if pair is not None:
                    products.append((user, turned, pair))
        if not products:
            return
        turned = products[0][1]
        tables = [user for user, index, _ in readers if _is_table(user, index) and user.graph is node.graph]
        reason = _unfit(self.edit.graph, node, turned)
        if reason is None and any(other != turned for _, other, _ in products):
            reason = "its weight is used both as it is and transposed"
        if reason is None and len(products) + len(tables) < len(readers):
            reason = "something else reads its weight, too"
        if reason is not None:
            for user, _, _ in products:
                self.remarks.append(Remark("missed", module_path(user), f"not computed in int8: {reason}"))
            return
        found = read(node, turned=turned)
        assert isinstance(found, Quantized)
        stored = _store(self.edit, found)
        for user in tables:
            self._table(user, stored)
            self._say(user, "Gather runs on the int8 weight of the product")
        for user, _, pair in products:
            self._product(user, stored, *pair)
            self._say(user, f"{user.op_type} runs as MatMulIntegerToFloat")
        self.edit.sweep([user for user, _, _ in products])

    def _say(self, node: onnx_ir.Node, what: str) -> None:
        self.remarks.append(Remark("applied", module_path(node), what))

    def _product(self, user: onnx_ir.Node, stored: _Stored, quantize: onnx_ir.Node, dequantize: onnx_ir.Node) -> None:
        edit, scale = self.edit, quantize.inputs[1]
        codes = self._unsigned(quantize)
        edit.at(user, [stored.weight.node, dequantize, user])
        columns = stored.codes
        if not stored.weight.turned:
            columns = edit.op("Transpose", [columns], {"perm": [1, 0]})
        inputs = [codes, columns, self._constant(1.0), stored.scales, self._constant(_OFFSET)]
        result = user.outputs[0]
        y = edit.op(
            "MatMulIntegerToFloat", inputs, domain=CONTRIB, dtype=result.dtype, shape=result.shape,
            hint=user.name or "MatMulIntegerToFloat",
        )  # fmt: skip
        y = edit.op("Mul", [y, scale])
        bias = user.inputs[2] if len(user.inputs) > 2 else None
        y = scale_and_add(edit, y, bias, float(attribute(user, "alpha", 1.0)), float(attribute(user, "beta", 1.0)))
        edit.replace(result, y)

    def _unsigned(self, quantize: onnx_ir.Node) -> onnx_ir.Value:
        """The codes of an input as the kernel wants them, made once at the place of the signed ones."""
        if quantize not in self._codes:
            edit = self.edit
            x, scale = quantize.inputs[:2]
            edit.at(quantize)
            block = {"axis": -1, "block_size": attribute(quantize, "block_size")}
            self._codes[quantize] = edit.op(
                "QuantizeLinear", [x, scale, self._offset(quantize, scale)], block, hint=quantize.name
            )
        return self._codes[quantize]

    def _offset(self, quantize: onnx_ir.Node, scale: onnx_ir.Value | None) -> onnx_ir.Value:
        """Zero points in the shape of ``scale``: one tensor for all inputs with as many tokens."""
        sizes = dims(scale)
        key = None if sizes is None or not all(map(known, sizes)) else tuple(map(str, sizes))
        kept = None if key is None else self._offsets.get(key)
        maker = None if kept is None else kept.producer()
        if kept is not None and maker is not None and self._order[maker] < self._order[quantize]:
            return kept
        shape = self.edit.op("Shape", [scale])
        value = onnx_ir.Tensor(np.asarray([_OFFSET], np.uint8))
        made = self.edit.op("ConstantOfShape", [shape], {"value": value}, hint="zero_points")
        maker = made.producer()
        assert maker is not None
        self._order[maker] = self._order[quantize]
        if key is not None:
            self._offsets[key] = made
        return made

    def _table(self, user: onnx_ir.Node, stored: _Stored) -> None:
        """Rows of the int8 weight and their scales are gathered, then dequantized."""
        edit, weight, ids = self.edit, stored.weight, user.inputs[1]
        edit.at(user, [weight.node, user])
        rows = edit.op("Gather", [stored.codes, ids], {"axis": 0})
        tensor = stored.scales.const_value
        assert tensor is not None
        column = edit.initializer(View(tensor, tensor.dtype, (weight.n, 1)), f"{stored.scales.name}.column")
        scales = edit.op("Gather", [column, ids], {"axis": 0})
        result = user.outputs[0]
        y = edit.op(
            "Mul", [edit.op("Cast", [rows], {"to": int(onnx_ir.DataType.FLOAT)}), scales],
            dtype=result.dtype, shape=result.shape,
        )  # fmt: skip
        edit.replace(result, y)
        edit.sweep([user])

    def _constant(self, number: float) -> onnx_ir.Value:
        name = "one" if number == 1 else "int8_offset"
        if name not in self._constants:
            kind = np.float32 if number == 1 else np.uint8
            self._constants[name] = self.edit.initializer(np.asarray(number, kind), name)
        return self._constants[name]


def _quantized_input(product: onnx_ir.Node) -> tuple[onnx_ir.Node, onnx_ir.Node] | None:
    """The ``QuantizeLinear`` to int8, a scale for each row, and the ``DequantizeLinear`` that the product reads."""
    x = product.inputs[0]
    dequantize = None if x is None else x.producer()
    if dequantize is None or not is_op(dequantize, "DequantizeLinear") or len(dequantize.inputs) != 2:
        return None
    codes, scale = dequantize.inputs
    quantize = None if codes is None else codes.producer()
    if quantize is None or not is_op(quantize, "QuantizeLinear") or len(quantize.inputs) != 2:
        return None
    sizes = dims(codes)
    if not sizes or quantize.inputs[1] is not scale or codes is None or codes.dtype != onnx_ir.DataType.INT8:
        return None
    for node in (quantize, dequantize):
        if attribute(node, "axis", 1) not in (-1, len(sizes) - 1) or attribute(node, "block_size", 0) != sizes[-1]:
            return None
    return quantize, dequantize


def _is_table(user: onnx_ir.Node, index: int) -> bool:
    return is_op(user, "Gather") and index == 0 and attribute(user, "axis", 0) in (0, -2)


def _unfit(graph: Graph, node: onnx_ir.Node, turned: bool) -> str | None:
    """Why the kernel cannot take a dequantized weight, or None."""
    weight = read(node, turned=turned)
    if isinstance(weight, str):
        return weight
    if weight.bits != 8 or attribute(node, "block_size", 0):
        return "its weight has no 8-bit codes with one scale per channel"
    if weight.scales.dtype != onnx_ir.DataType.FLOAT or list(weight.scales.shape.numpy()) != [weight.n]:
        return "its weight has no float32 scale for each channel"
    if weight.block_zeros() is not None:
        return "its weight has zero points"
    if not kernels.has(CONTRIB, "MatMulIntegerToFloat", 1, [_UNSIGNED, _SIGNED, _FLOAT, _FLOAT, _UNSIGNED]):
        return f"ONNX Runtime {kernels.version()} has no MatMulIntegerToFloat of unsigned by signed codes"
    opset = graph.opset_imports.get("", 1)
    if not kernels.has("", "QuantizeLinear", opset, [_FLOAT, _FLOAT, _UNSIGNED], ["block_size"]):
        return f"ONNX Runtime {kernels.version()} has no QuantizeLinear by blocks"
    return None


def _store(edit: Editor, weight: Quantized) -> _Stored:
    base = ((weight.node.inputs[0] and weight.node.inputs[0].name) or "weight").removesuffix(".codes")
    codes, signed = weight.codes, onnx_ir.DataType.INT8
    if codes.dtype != signed:
        unsigned = codes
        codes = lazy(lambda: (unsigned.numpy() ^ np.uint8(_OFFSET)).view(np.int8), signed, unsigned.shape.numpy())
    return _Stored(
        weight,
        edit.initializer(codes, f"{base}.int8"),
        edit.initializer(weight.scales, f"{base}.channel_scales"),
    )
