"""Lowering of products whose two operands are in 8 bits to ``MatMulIntegerToFloat``.

The kernel takes unsigned activations and signed weights: both signed, it is 20 times slower. It takes one scale and
one zero point for all activations. So the scales of the tokens are multiplied to its result, and a bias is added after
that; and their zero points, unless all have the same, stand in columns behind the codes, where the weights sum up to
minus the sum of the channel: ``sum(q w) - z sum(w) = sum((q - z) w)``, exact in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, constant, dims, is_op, module_path, producer, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.weights import View, lazy
from . import kernels
from .nbits import CONTRIB, Quantized, following_bias, is_bias, read, scale_and_add, users

RULE = "quantize, dequantize and multiply => MatMulIntegerToFloat"
_FLOAT, _UNSIGNED, _SIGNED = "tensor(float)", "tensor(uint8)", "tensor(int8)"
_OFFSET = 128
"""Of unsigned codes of weights: what stands for zero."""
_LARGEST = 127
_STEP = 32
"""Zero points stand in so many columns or a multiple, so that products of one input mostly agree on how many."""
Array = np.ndarray[Any, Any]


@dataclass
class _Stored:
    """Initializers of one weight: int8 codes, laid out as they came, and float32 scales [N].

    Attributes:
        extra: number of weights of each channel that cancel zero points.
    """

    weight: Quantized
    codes: onnx_ir.Value
    scales: onnx_ir.Value
    extra: int


def lower_integer(graph: Graph) -> list[Remark]:
    """Turn products of inputs quantized by token or as a whole and weights quantized by channel into integer products.

    An input that several products read is quantized once, a weight that several nodes read is stored once, an
    embedding included. What cannot be lowered stays as it is. The weights are read here, one at a time, for the sums of
    their channels, and again when they are written.
    """
    lowering = _Lowering(graph)
    weights = [n for n in graph.graph if is_op(n, "DequantizeLinear") and tensor_of(n.inputs[0]) is not None]
    for node in weights:
        lowering.weight(node)
    return lowering.remarks


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.edit = Editor(graph, RULE)
        self.remarks: list[Remark] = []
        self._codes: dict[tuple[onnx_ir.Node, int], onnx_ir.Value] = {}
        self._one: onnx_ir.Value | None = None

    def weight(self, node: onnx_ir.Node) -> None:
        """Lower the products and embeddings of one dequantized weight."""
        readers = users(node.outputs[0])
        products = []
        for user, index, turned in readers:
            if is_op(user, "MatMul", "Gemm") and index == 1 and user.graph is self.edit.graph.graph:
                pair = _quantized_input(user) or _static_input(user)
                if pair is not None:
                    products.append((user, turned, pair))
        if not products:
            return
        if attribute(node, "block_size", 0):
            for user, _, (quantize, _) in products:
                self._give_back(user, quantize)
            return
        turned = products[0][1]
        tables = [user for user, index, _ in readers if _is_table(user, index) and user.graph is node.graph]
        reason = _unfit(self.edit.graph, node, turned)
        if reason is None and any(other != turned for _, other, _ in products):
            reason = "its weight is used both as it is and transposed"
        if reason is None and len(products) + len(tables) < len(readers):
            reason = "something else reads its weight, too"
        kinds = {attribute(quantize, "block_size", 0) == 0 for _, _, (quantize, _) in products}
        shared = {_shared_offset(quantize) is not None for _, _, (quantize, _) in products}
        if reason is None and len(kinds) > 1:
            reason = "its weight meets inputs quantized by token and as a whole"
        if reason is None and len(shared) > 1:
            reason = "its weight meets inputs with one zero point and with one for each token"
        if reason is not None:
            for user, _, _ in products:
                self.remarks.append(Remark("missed", module_path(user), f"not computed in int8: {reason}"))
            return
        found = read(node, turned=turned)
        assert isinstance(found, Quantized)
        # A zero point that is the same for all rows is the kernel's own business.
        extra = 0 if True in kinds or True in shared else _extra(found)
        stored = _store(self.edit, found, extra)
        for user in tables:
            self._table(user, stored)
            self._say(user, "Gather runs on the int8 weight of the product")
        for user, _, pair in products:
            self._product(user, stored, *pair)
            self._say(user, f"{user.op_type} runs as MatMulIntegerToFloat")
        self.edit.sweep([user for user, _, _ in products])

    def _give_back(self, user: onnx_ir.Node, quantize: onnx_ir.Node) -> None:
        """Let a product by a weight in groups read its input as it is."""
        pair = user.inputs[0].producer() if user.inputs[0] is not None else None
        user.replace_input_with(0, quantize.inputs[0])
        if pair is not None and not pair.outputs[0].uses():
            self.edit.sweep([pair])
        self._say(user, "the kernel for weights in groups rounds its input to 8 bits itself, group by group")

    def _say(self, node: onnx_ir.Node, what: str) -> None:
        self.remarks.append(Remark("applied", module_path(node), what))

    def _product(self, user: onnx_ir.Node, stored: _Stored, quantize: onnx_ir.Node, dequantize: onnx_ir.Node) -> None:
        edit, scale = self.edit, quantize.inputs[1]
        static = attribute(quantize, "block_size", 0) == 0
        codes = quantize.outputs[0] if static else self._extended(quantize, stored.extra)
        edit.at(user, [stored.weight.node, dequantize, user])
        columns = stored.codes
        if not stored.weight.turned:
            columns = edit.op("Transpose", [columns], {"perm": [1, 0]})
        if self._one is None:
            self._one = edit.initializer(np.asarray(1, np.float32), "one")
        inputs = [codes, columns, scale if static else self._one, stored.scales]
        bias = user.inputs[2] if len(user.inputs) > 2 else None
        alpha, beta = float(attribute(user, "alpha", 1.0)), float(attribute(user, "beta", 1.0))
        tail: onnx_ir.Node | None = None
        if static:
            if user.op_type == "MatMul":
                bias, tail = following_bias(user, stored.weight.n)
            inputs.append(quantize.inputs[2])
            # With scales of tokens, which are multiplied afterwards, the kernel cannot add it.
            if alpha == beta == 1.0 and is_bias(bias, stored.weight.n):
                inputs += [None, bias]
                bias = None
        elif (offset := _shared_offset(quantize)) is not None:
            inputs.append(edit.initializer(np.asarray(offset, np.uint8), "zero_point"))
        result = (tail or user).outputs[0]
        y = edit.op(
            "MatMulIntegerToFloat", inputs, domain=CONTRIB, dtype=result.dtype, shape=result.shape,
            hint=user.name or "MatMulIntegerToFloat",
        )  # fmt: skip
        if not static:
            y = edit.op("Mul", [y, scale])
        edit.replace(result, scale_and_add(edit, y, bias, alpha, beta))
        if tail is not None:
            edit.sweep([tail])

    def _extended(self, quantize: onnx_ir.Node, extra: int) -> onnx_ir.Value:
        """The codes of an input, unsigned, and its zero points ``extra`` times behind them; made once."""
        edit = self.edit
        edit.at(quantize)
        if (quantize, 0) not in self._codes:
            x, scale = quantize.inputs[:2]
            offset = self._offset(quantize)
            block = {"axis": -1, "block_size": attribute(quantize, "block_size")}
            self._codes[quantize, 0] = edit.op("QuantizeLinear", [x, scale, offset], block, hint=quantize.name)
        codes = self._codes[quantize, 0]
        if extra and (quantize, extra) not in self._codes:
            made = codes.producer()
            assert made is not None
            # Two long pieces: a piece for each column takes several times longer.
            columns = edit.op("Expand", [made.inputs[2], edit.ints([extra])])
            self._codes[quantize, extra] = edit.op("Concat", [codes, columns], {"axis": -1}, hint=quantize.name)
        return self._codes[quantize, extra]

    def _offset(self, quantize: onnx_ir.Node) -> onnx_ir.Value:
        """The zero points of rows as uint8."""
        expand, offset = producer(quantize.inputs[2], "Expand"), _shared_offset(quantize)
        if expand is not None and offset is not None:
            whole = self.edit.initializer(np.asarray([offset], np.uint8), "zero_point")
            return self.edit.op("Expand", [whole, expand.inputs[1]])
        return self.edit.op("Cast", [_unsigned_offset(quantize)], {"to": int(onnx_ir.DataType.UINT8)})

    def _table(self, user: onnx_ir.Node, stored: _Stored) -> None:
        """Rows of the int8 weight and their scales are gathered, then dequantized."""
        edit, weight, ids = self.edit, stored.weight, user.inputs[1]
        edit.at(user, [weight.node, user])
        rows = edit.op("Gather", [stored.codes, ids], {"axis": 0})
        if stored.extra:
            last = edit.ints([-1], "last_axis")
            rows = edit.op("Slice", [rows, edit.ints([0], "start"), edit.ints([weight.k], "stop"), last])
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


def _quantized_input(product: onnx_ir.Node) -> tuple[onnx_ir.Node, onnx_ir.Node] | None:
    """The ``QuantizeLinear`` of the rows of an input and the ``DequantizeLinear`` that the product reads."""
    x = product.inputs[0]
    dequantize = None if x is None else x.producer()
    if dequantize is None or not is_op(dequantize, "DequantizeLinear") or len(dequantize.inputs) != 3:
        return None
    codes = dequantize.inputs[0]
    quantize = None if codes is None else codes.producer()
    if quantize is None or not is_op(quantize, "QuantizeLinear") or len(quantize.inputs) != 3:
        return None
    sizes = dims(codes)
    same = tuple(quantize.inputs[1:]) == tuple(dequantize.inputs[1:])
    if not sizes or not same or codes is None or codes.dtype != onnx_ir.DataType.INT8:
        return None
    for node in (quantize, dequantize):
        if attribute(node, "axis", 1) not in (-1, len(sizes) - 1) or attribute(node, "block_size", 0) != sizes[-1]:
            return None
    known = _unsigned_offset(quantize) is not None or _shared_offset(quantize) is not None
    return (quantize, dequantize) if known else None


def _static_input(product: onnx_ir.Node) -> tuple[onnx_ir.Node, onnx_ir.Node] | None:
    """The same, quantized to uint8 with one constant scale and zero point."""
    x = product.inputs[0]
    dequantize = None if x is None else x.producer()
    if dequantize is None or not is_op(dequantize, "DequantizeLinear") or len(dequantize.inputs) != 3:
        return None
    codes, scale, zero = dequantize.inputs
    quantize = producer(codes, "QuantizeLinear")
    if quantize is None or tuple(quantize.inputs[1:]) != (scale, zero) or codes is None:
        return None
    numbers = [tensor_of(value) for value in (scale, zero)]
    if codes.dtype != onnx_ir.DataType.UINT8 or any(number is None or number.size != 1 for number in numbers):
        return None
    return quantize, dequantize


def _unsigned_offset(quantize: onnx_ir.Node) -> onnx_ir.Value | None:
    """The zero points before 128 was taken off and they became int8, in floating point."""
    cast = producer(quantize.inputs[2], "Cast")
    less = None if cast is None else producer(cast.inputs[0], "Sub")
    middle = None if less is None else constant(less.inputs[1], limit=1)
    return less.inputs[0] if less is not None and middle is not None and middle == _OFFSET else None


def _shared_offset(quantize: onnx_ir.Node) -> int | None:
    """The zero point of all rows before 128 was taken off and it became int8."""
    expand = producer(quantize.inputs[2], "Expand")
    whole = None if expand is None else constant(expand.inputs[0], limit=1)
    return None if whole is None or whole.size != 1 else int(whole.reshape(-1)[0]) + _OFFSET


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
    if not kernels.has(CONTRIB, "MatMulIntegerToFloat", 1, [_UNSIGNED, _SIGNED, _FLOAT, _FLOAT]):
        return f"ONNX Runtime {kernels.version()} has no MatMulIntegerToFloat of unsigned by signed codes"
    opset = graph.opset_imports.get("", 1)
    if not kernels.has("", "QuantizeLinear", opset, [_FLOAT, _FLOAT, _UNSIGNED], ["block_size"]):
        return f"ONNX Runtime {kernels.version()} has no QuantizeLinear by blocks"
    return None


def _signed(tensor: onnx_ir.TensorProtocol) -> Array:
    codes = tensor.numpy()
    return codes if tensor.dtype == onnx_ir.DataType.INT8 else (codes ^ np.uint8(_OFFSET)).view(np.int8)


def _extra(weight: Quantized) -> int:
    """How many weights of 8 bits it takes to cancel the zero points of any channel; reads the codes."""
    sums = _signed(weight.codes).sum(axis=0 if weight.turned else 1, dtype=np.int32)
    weight.scales.numpy()  # computed together with the codes, which are kept until someone reads them
    need = -(-int(np.abs(sums).max(initial=0)) // _LARGEST)
    return -(-need // _STEP) * _STEP


def cancelling(codes: Array, extra: int, axis: int) -> Array:
    """``codes``, int8, with ``extra`` more along ``axis`` that sum up to minus the sum of the others."""
    left = -codes.sum(axis=axis, dtype=np.int32, keepdims=True)
    shares = left // extra + (np.arange(extra).reshape((-1, 1) if axis == 0 else (1, -1)) < left % extra)
    return np.concatenate([codes, shares.astype(np.int8)], axis=axis)


def _store(edit: Editor, weight: Quantized, extra: int) -> _Stored:
    base = ((weight.node.inputs[0] and weight.node.inputs[0].name) or "weight").removesuffix(".codes")
    codes, axis = weight.codes, 0 if weight.turned else 1

    def compute() -> Array:
        signed = _signed(codes)
        return cancelling(signed, extra, axis) if extra else signed

    shape = [weight.n, weight.k + extra] if axis else [weight.k + extra, weight.n]
    return _Stored(
        weight,
        edit.initializer(lazy(compute, onnx_ir.DataType.INT8, shape), f"{base}.int8"),
        edit.initializer(weight.scales, f"{base}.channel_scales"),
        extra,
    )
