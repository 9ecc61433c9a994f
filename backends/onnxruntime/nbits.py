"""Lowering of quantized weights to ``MatMulNBits`` and ``GatherBlockQuantized``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import FLOAT_INPUTS, Graph, attribute, is_op, module_path, rank, tensor_of
from ...ir.graph import RULE as RULE_KEY
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.weights import View, lazy, rearranged
from . import kernels, packing
from .legality import type_name

RULE = "dequantize and multiply => MatMulNBits"
CONTRIB = "com.microsoft"
_LEVEL = 4
"""MatMulNBits ``accuracy_level``: activations to int8 per block. Level 0 is 2 to 190 times slower (8 bits: 190)."""
_FLOAT_LEVEL = 1
"""Activations in float32."""

_BITS = {
    onnx_ir.DataType.UINT4: 4,
    onnx_ir.DataType.INT4: 4,
    onnx_ir.DataType.UINT8: 8,
    onnx_ir.DataType.INT8: 8,
}
_SIGNED = (onnx_ir.DataType.INT4, onnx_ir.DataType.INT8)


@dataclass
class Quantized:
    """A weight under a ``DequantizeLinear``, seen as ``n`` channels of ``k`` codes.

    Attributes:
        node: the DequantizeLinear.
        turned: channels are columns of the stored codes.
        block: block size of the kernel; ``spread`` if each channel's one scale must be repeated over its blocks.
    """

    node: onnx_ir.Node
    codes: onnx_ir.TensorProtocol
    scales: onnx_ir.TensorProtocol
    zeros: onnx_ir.TensorProtocol | None
    bits: int
    block: int
    spread: bool
    turned: bool
    n: int
    k: int

    @property
    def blocks(self) -> int:
        """Blocks of a channel."""
        return -(-self.k // self.block)

    @property
    def row_bytes(self) -> int:
        """Bytes of a channel's codes, the last block padded."""
        return self.blocks * self.block * self.bits // 8

    def packed(self) -> onnx_ir.TensorProtocol:
        """Codes as uint8 [n, blocks, bytes of a block], unread; the stored bytes themselves where they fit."""
        shape = (self.n, self.blocks, self.block * self.bits // 8)
        if not self.turned and self.k % self.block == 0 and self.codes.dtype not in _SIGNED:
            return View(self.codes, onnx_ir.DataType.UINT8, shape)
        return lazy(
            lambda: packing.pack_blocks(self.rows(self.codes), self.bits, self.block), onnx_ir.DataType.UINT8, shape
        )

    def rows(self, tensor: onnx_ir.TensorProtocol) -> np.ndarray[Any, Any]:
        """Codes or zero points, one row a channel, as unsigned bytes."""
        array = tensor.numpy()
        if tensor.dtype in _SIGNED:
            array = (array.astype(np.int16) + (1 << (self.bits - 1))).astype(np.uint8)
        else:
            array = array.astype(np.uint8)
        if array.ndim < 2:
            array = np.broadcast_to(array.reshape(-1, 1), (self.n, 1))
        elif self.turned:
            array = array.T
        return np.ascontiguousarray(array)

    def block_scales(self) -> onnx_ir.TensorProtocol:
        """Scales as [n, blocks], unread."""
        shape = (self.n, self.blocks)
        if not self.spread and not self.turned:
            return self.scales

        def arrange(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
            if self.spread:
                return np.ascontiguousarray(np.broadcast_to(arrays[0].reshape(-1, 1), shape))
            return np.ascontiguousarray(arrays[0].T)

        return rearranged([self.scales], arrange, shape)

    def row_codes(self) -> onnx_ir.TensorProtocol:
        """Codes as uint8 [n, ceil(k * bits / 8)], rows padded to a byte, unread."""
        shape = (self.n, -(-self.k * self.bits // 8))
        if not self.turned and (self.bits == 8 or self.k % 2 == 0) and self.codes.dtype not in _SIGNED:
            return View(self.codes, onnx_ir.DataType.UINT8, shape)
        return lazy(lambda: packing.pack_rows(self.rows(self.codes), self.bits), onnx_ir.DataType.UINT8, shape)

    def row_zeros(self) -> onnx_ir.TensorProtocol | None:
        """Like :meth:`block_zeros`, but with the middle code written out; None if there are none."""
        zeros = self.zeros
        if zeros is None:
            return None
        shape = (self.n, -(-self.blocks * self.bits // 8))

        def compute() -> np.ndarray[Any, Any]:
            return packing.pack_rows(np.broadcast_to(self.rows(zeros), (self.n, self.blocks)), self.bits)

        return lazy(compute, onnx_ir.DataType.UINT8, shape)

    def block_zeros(self) -> onnx_ir.TensorProtocol | None:
        """Zero points as uint8 [n, ceil(blocks * bits / 8)], unread; None if all are the middle code."""
        if self.zeros is None and self.codes.dtype in _SIGNED:
            return None
        if self.zeros is not None and _is_middle(self.zeros, self.bits):
            return None
        shape = (self.n, -(-self.blocks * self.bits // 8))
        zeros = self.zeros
        if zeros is None:
            return onnx_ir.Tensor(np.zeros(shape, np.uint8))
        plain = not self.spread and not self.turned and zeros.dtype not in _SIGNED
        if plain and (self.bits == 8 or self.blocks % 2 == 0):
            return View(zeros, onnx_ir.DataType.UINT8, shape)

        def compute() -> np.ndarray[Any, Any]:
            rows = np.broadcast_to(self.rows(zeros), (self.n, self.blocks))
            return packing.pack_rows(rows, self.bits)

        return lazy(compute, onnx_ir.DataType.UINT8, shape)


def _is_middle(zeros: onnx_ir.TensorProtocol, bits: int) -> bool:
    """Whether all zero points are the middle code; a tensor that would have to be computed counts as not."""
    if isinstance(zeros, onnx_ir.LazyTensor):
        return False
    middle = 0 if zeros.dtype in _SIGNED else 1 << (bits - 1)
    if isinstance(zeros, onnx_ir.PackedTensor):
        raw = zeros.numpy_packed().reshape(-1)
        byte = middle * 0x11
        return bool((raw[: zeros.size // 2] == byte).all() and (raw[-1] & 15) == middle)
    return bool((zeros.numpy().astype(np.int16) == middle).all())


def read(node: onnx_ir.Node, *, turned: bool) -> Quantized | str:
    """The weight that ``node`` dequantizes, or why the kernels cannot take it.

    Args:
        node: a ``DequantizeLinear`` of a constant matrix.
        turned: whether the product contracts the first axis of the stored matrix ([K, N]) or the second ([N, K]).
    """
    codes, scales = tensor_of(node.inputs[0]), tensor_of(node.inputs[1])
    zeros = tensor_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes is None or scales is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zeros is None):
        return "its codes, scales or zero points are not constant"
    if codes.dtype not in _BITS:
        return f"no kernel takes codes of type {codes.dtype.name}"
    if len(codes.shape) != 2:
        return f"its codes have {len(codes.shape)} axes"
    shape = [int(d) for d in codes.shape.numpy()]
    k, n = (shape[0], shape[1]) if turned else (shape[1], shape[0])
    axis = attribute(node, "axis", 1) % 2
    block = attribute(node, "block_size", 0)
    along = 0 if turned else 1
    bits = _BITS[codes.dtype]
    if block:
        if axis != along:
            return "its groups run along the output channels"
        if block not in packing.BLOCKS:
            if block < k:
                return f"no kernel takes groups of {block}"
            block, spread = packing.block_for_channel(k, bits), True
        else:
            spread = False
    else:
        if RULE_KEY not in node.metadata_props:
            return "it belongs to a quantized model as it came"
        if len(scales.shape) == 1 and axis == along and scales.size > 1:
            return "its scales run along the input channels"
        block, spread = packing.block_for_channel(k, bits), True
    return Quantized(node, codes, scales, zeros, bits, block, spread, turned, n, k)


@dataclass
class _Stored:
    """Initializers of one weight, made once for all its users."""

    weight: Quantized
    packed: onnx_ir.TensorProtocol
    codes: onnx_ir.Value | None
    table: onnx_ir.Value | None
    scales: onnx_ir.Value
    zeros: onnx_ir.Value | None


def lower_quantized(graph: Graph) -> list[Remark]:
    """Turn products by dequantized weights into ``MatMulNBits``, and their embeddings into ``GatherBlockQuantized``.

    Weights are left unread; a weight with several users is stored once.
    """
    edit = Editor(graph, RULE)
    remarks: list[Remark] = []
    for node in list(graph.graph):
        if node.graph is not None and is_op(node, "DequantizeLinear") and tensor_of(node.inputs[0]) is not None:
            _lower(edit, node, remarks)
    return remarks


def _lower(edit: Editor, node: onnx_ir.Node, remarks: list[Remark]) -> None:
    stored: dict[bool, _Stored | str] = {}

    def store(turned: bool) -> _Stored | str:
        if turned not in stored:
            weight = read(node, turned=turned)
            stored[turned] = weight if isinstance(weight, str) else _store(edit, node, weight)
        return stored[turned]

    dead: list[onnx_ir.Node] = []
    for user, index, turned in users(node.outputs[0]):
        where = module_path(user)
        reason = _lower_user(edit, user, index, turned, store)
        if reason is None:
            dead.append(user)
            op = "GatherBlockQuantized" if user.op_type == "Gather" else "MatMulNBits"
            remarks.append(Remark("applied", where, f"{user.op_type} runs as {op}", {"op": op}))
        else:
            remarks.append(Remark("missed", where, f"{user.op_type} by a quantized weight stays as it is: {reason}"))
    edit.sweep(dead)


def users(value: onnx_ir.Value) -> list[tuple[onnx_ir.Node, int, bool]]:
    """(node, input index, whether the node contracts the first stored axis) of each reader behind Transposes."""
    found = []
    for use in value.uses():
        if is_op(use.node, "Transpose") and attribute(use.node, "perm", [1, 0]) == [1, 0]:
            for inner in use.node.outputs[0].uses():
                found.append((inner.node, inner.idx, bool(attribute(inner.node, "transB", 0))))
        else:
            turned = not attribute(use.node, "transB", 0) and not is_op(use.node, "Gather")
            found.append((use.node, use.idx, turned))
    return found


def _store(edit: Editor, node: onnx_ir.Node, weight: Quantized) -> _Stored:
    name = (node.inputs[0].name or "weight") if node.inputs[0] else "weight"
    base = name.removesuffix(".codes")
    zeros = weight.block_zeros()
    # Registered one after the other, so that the writer computes each weight once.
    packed = weight.packed()
    return _Stored(
        weight,
        packed,
        None,
        None,
        edit.initializer(weight.block_scales(), f"{base}.block_scales"),
        None if zeros is None else edit.initializer(zeros, f"{base}.block_zero_points"),
    )


def _lower_user(
    edit: Editor, user: onnx_ir.Node, index: int, turned: bool, store: Callable[[bool], _Stored | str]
) -> str | None:
    """Replace one user; the reason if that cannot be done."""
    if user.graph is not edit.graph.graph:
        return "it is inside a subgraph"
    if is_op(user, "Gather") and index == 0 and attribute(user, "axis", 0) in (0, -2):
        stored = store(False)
        return stored if isinstance(stored, str) else _gather(edit, user, stored)
    if not is_op(user, "MatMul", "Gemm") or index != 1:
        return f"no kernel for {user.op_type} with such a weight"
    if attribute(user, "transA", 0):
        return "Gemm transposes its left operand"
    stored = store(turned)
    return stored if isinstance(stored, str) else _multiply(edit, user, stored)


def _multiply(edit: Editor, user: onnx_ir.Node, stored: _Stored) -> str | None:
    x, weight = user.inputs[0], stored.weight
    if x is None or (rank(x) is not None and (rank(x) or 0) < 2):
        return "its left operand is a vector"
    kind = type_name(x)
    if not kernels.has(CONTRIB, "MatMulNBits", 1, [kind, "tensor(uint8)", kind], ["accuracy_level", "bits"]):
        return f"MatMulNBits has no kernel for {kind}"
    alpha, beta = float(attribute(user, "alpha", 1.0)), float(attribute(user, "beta", 1.0))
    bias = user.inputs[2] if len(user.inputs) > 2 else None
    tail: onnx_ir.Node | None = None
    if user.op_type == "MatMul":
        bias, tail = following_bias(user, weight.n)
    edit.at(user, [weight.node, user])
    if stored.codes is None:
        stored.codes = edit.initializer(stored.packed, f"{user.name or 'product'}.codes")
    fused = bias if alpha == beta == 1.0 and is_bias(bias, weight.n) else None
    inputs = [x, stored.codes, stored.scales, stored.zeros, None, fused]
    while inputs[-1] is None:
        inputs.pop()
    level = _FLOAT_LEVEL if FLOAT_INPUTS in weight.node.metadata_props else _LEVEL
    attributes = {
        "K": weight.k, "N": weight.n, "bits": weight.bits, "block_size": weight.block, "accuracy_level": level,
    }  # fmt: skip
    result = (tail or user).outputs[0]
    y = edit.op(
        "MatMulNBits", inputs, attributes, domain=CONTRIB, dtype=result.dtype, shape=result.shape,
        hint=user.name or "MatMulNBits",
    )  # fmt: skip
    y = scale_and_add(edit, y, None if fused is not None else bias, alpha, beta)
    edit.replace(result, y)
    if tail is not None:
        edit.sweep([tail])
    return None


def scale_and_add(
    edit: Editor, y: onnx_ir.Value, bias: onnx_ir.Value | None, alpha: float, beta: float
) -> onnx_ir.Value:
    """``alpha * y + beta * bias``, what a Gemm does after its product."""
    if alpha != 1.0:
        y = edit.op("Mul", [y, _scalar(edit, alpha, y)])
    if bias is not None:
        if beta != 1.0:
            bias = edit.op("Mul", [bias, _scalar(edit, beta, y)])
        y = edit.op("Add", [y, bias])
    return y


def _scalar(edit: Editor, number: float, like: onnx_ir.Value) -> onnx_ir.Value:
    assert like.dtype is not None
    return edit.initializer(np.asarray(number, like.dtype.numpy()), "factor")


def is_bias(value: onnx_ir.Value | None, n: int) -> bool:
    """Whether a value is a constant of one number a channel."""
    tensor = tensor_of(value)
    return tensor is not None and list(tensor.shape.numpy()) == [n]


def following_bias(user: onnx_ir.Node, n: int) -> tuple[onnx_ir.Value | None, onnx_ir.Node | None]:
    """The constant bias that the only reader of the product adds, and that Add."""
    uses = list(user.outputs[0].uses())
    if len(uses) != 1 or user.outputs[0].is_graph_output() or not is_op(uses[0].node, "Add"):
        return None, None
    add = uses[0].node
    bias = add.inputs[1 - uses[0].idx]
    return (bias, add) if is_bias(bias, n) and add.graph is user.graph else (None, None)


def _gather(edit: Editor, user: onnx_ir.Node, stored: _Stored) -> str | None:
    indices, weight = user.inputs[1], stored.weight
    kind, index_kind = type_name(stored.scales), type_name(indices)
    if not kernels.has(CONTRIB, "GatherBlockQuantized", 1, ["tensor(uint8)", index_kind, kind], ["bits"]):
        return f"GatherBlockQuantized has no kernel for {kind}"
    edit.at(user, [weight.node, user])
    if stored.table is None:
        view = View(stored.packed, onnx_ir.DataType.UINT8, (weight.n, weight.row_bytes))
        stored.table = edit.initializer(view, f"{user.name or 'embedding'}.codes")
    width = weight.blocks * weight.block
    result = user.outputs[0]
    exact = width == weight.k
    shape = None if indices is None or indices.shape is None else [*indices.shape, width]
    inputs = [stored.table, indices, stored.scales, *([stored.zeros] if stored.zeros is not None else [])]
    y = edit.op(
        "GatherBlockQuantized",
        inputs,
        {"bits": weight.bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1},
        domain=CONTRIB,
        dtype=result.dtype,
        shape=result.shape if exact else shape,
        hint=user.name or "GatherBlockQuantized",
    )
    if not exact:
        last = edit.ints([-1], "last_axis")
        y = edit.op("Slice", [y, edit.ints([0], "start"), edit.ints([weight.k], "stop"), last])
    edit.replace(result, y)
    return None
