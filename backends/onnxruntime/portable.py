"""Lowering to standard ONNX: quantized weights in the layout that runtimes fuse, embeddings gathered before they are
dequantized, and nothing outside the standard."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import onnx_ir.passes.common

from ...ir.errors import UnsupportedError
from ...ir.graph import Graph, all_nodes, attribute, is_op, module_path, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.weights import View, lazy
from .nbits import Quantized, read, users

RULE = "standard quantized weights"
Array = np.ndarray[Any, Any]
_UNSIGNED = (onnx_ir.DataType.UINT4, onnx_ir.DataType.UINT8)


def lower_portable(graph: Graph) -> list[Remark]:
    """Bring quantized weights into standard forms that run fast, inline functions, refuse other domains.

    Raises:
        UnsupportedError: an operator is not standard and has no standard form.
    """
    remarks = _inline(graph)
    edit = Editor(graph, RULE)
    for node in list(graph.graph):
        if node.graph is not None and is_op(node, "DequantizeLinear") and tensor_of(node.inputs[0]) is not None:
            _lower(edit, node, remarks)
    for node in all_nodes(graph):
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedError(
                f"{node.domain}.{node.op_type} is not a standard ONNX operator",
                where=module_path(node),
                fix="export with target='onnxruntime'",
            )
    for domain in [d for d in graph.opset_imports if d not in ("", "ai.onnx")]:
        del graph.opset_imports[domain]
    return remarks


def _inline(graph: Graph) -> list[Remark]:
    if not graph.functions:
        return []
    names = sorted({f"{function.domain}.{function.name}" for function in graph.functions.values()})
    onnx_ir.passes.common.InlinePass()(graph)
    return [Remark("applied", "", f"functions written out in standard operators: {', '.join(names)}")]


def _lower(edit: Editor, node: onnx_ir.Node, remarks: list[Remark]) -> None:
    products: list[tuple[onnx_ir.Node, bool]] = []
    tables: list[onnx_ir.Node] = []
    for user, index, turned in users(node.outputs[0]):
        if user.graph is not edit.graph.graph:
            continue
        if is_op(user, "Gather") and index == 0 and attribute(user, "axis", 0) in (0, -2):
            tables.append(user)
        elif is_op(user, "MatMul", "Gemm") and index == 1:
            products.append((user, turned))
    if not products and not tables:
        return
    turned = products[0][1] if products else False
    weight = read(node, turned=turned)
    where = module_path((tables or [user for user, _ in products])[0])
    if not isinstance(weight, str) and weight.codes.dtype not in _UNSIGNED:
        weight = f"codes of type {weight.codes.dtype.name}"
    if not isinstance(weight, str) and any(other != turned for _, other in products):
        weight = "it is used both as it is and transposed"
    if isinstance(weight, str):
        remarks.append(Remark("missed", where, f"quantized weight stays as it is: {weight}"))
        return
    columns: _Columns | None = None
    if products:
        columns = _Columns(edit, weight)
        for user, _ in products:
            _product(edit, user, columns)
            remarks.append(
                Remark(
                    "applied", module_path(user), "DequantizeLinear on [K, N] before the product, as runtimes fuse it"
                )
            )
    for user in tables:
        _Table(edit, user, weight, columns).lower()
        shared = "its codes shared with the product" if columns is not None and columns.shareable else "by rows"
        remarks.append(Remark("applied", module_path(user), f"embedding gathered first, then dequantized, {shared}"))


class _Columns:
    """A weight stored with channels as columns: codes [K, N], scales and zero points [blocks, N]."""

    def __init__(self, edit: Editor, weight: Quantized) -> None:
        self.weight = weight
        base = ((weight.node.inputs[0] and weight.node.inputs[0].name) or "weight").removesuffix(".codes")
        codes, scales, zeros = weight.codes, weight.scales, weight.zeros
        assert zeros is not None or not weight.spread
        if not weight.turned or weight.spread:
            shape, small = (weight.blocks, weight.n), codes.dtype
            source, factors, offsets = codes, scales, zeros
            if not weight.turned:
                codes = lazy(lambda: _pack(weight.rows(source).T, small), small, (weight.k, weight.n))
            scales = lazy(lambda: _spread(_by_row(factors.numpy(), weight), shape), factors.dtype, shape)
            if offsets is not None:
                zeros = lazy(lambda: _pack(_spread(weight.rows(offsets), shape), small), small, shape)
        self.tensors = codes, scales, zeros
        self.codes = edit.initializer(codes, f"{base}.columns")
        self.scales = edit.initializer(scales, f"{base}.column_scales")
        self.zeros = None if zeros is None else edit.initializer(zeros, f"{base}.column_zero_points")

    @property
    def shareable(self) -> bool:
        """Whether single columns can be picked out of the stored bytes."""
        return self.weight.bits == 8 or self.weight.n % 2 == 0


def _by_row(array: Array, weight: Quantized) -> Array:
    if array.ndim < 2:
        return array.reshape(-1, 1)
    return array.T if weight.turned else array


def _spread(rows: Array, shape: tuple[int, int]) -> Array:
    """[N, blocks] (or [N, 1], one scale a channel) as [blocks, N]."""
    return np.ascontiguousarray(np.broadcast_to(rows, shape[::-1]).T)


def _pack(codes: Array, dtype: onnx_ir.DataType) -> onnx_ir.TensorProtocol:
    codes = np.ascontiguousarray(codes)
    if dtype == onnx_ir.DataType.UINT8:
        return onnx_ir.Tensor(codes, dtype=dtype)
    flat = codes.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return onnx_ir.PackedTensor(flat[0::2] | (flat[1::2] << 4), dtype, shape=codes.shape)


def _product(edit: Editor, user: onnx_ir.Node, columns: _Columns) -> None:
    weight = columns.weight
    # One node for each product: runtimes fuse a DequantizeLinear only into its single reader.
    edit.at(user, [weight.node, user])
    inputs = [columns.codes, columns.scales, *([columns.zeros] if columns.zeros is not None else [])]
    new = edit.op(
        "DequantizeLinear", inputs, {"axis": 0, "block_size": weight.block}, dtype=weight.scales.dtype,
        shape=[weight.k, weight.n],
    )  # fmt: skip
    old = user.inputs[1]
    user.replace_input_with(1, new)
    if is_op(user, "Gemm"):
        user.attributes["transB"] = onnx_ir.AttrInt64("transB", 0)
    producer = old.producer() if old is not None else None
    if producer is not None:
        edit.sweep([producer])


class _Table:
    """An embedding by standard operators: codes, scales and zero points are gathered, then those rows dequantized."""

    def __init__(self, edit: Editor, user: onnx_ir.Node, weight: Quantized, columns: _Columns | None) -> None:
        self.edit, self.user, self.weight = edit, user, weight
        self.columns = columns if columns is not None and columns.shareable else None
        self.axis = 1 if self.columns is not None else 0

    def lower(self) -> None:
        edit, weight, ids = self.edit, self.weight, self.user.inputs[1]
        edit.at(self.user, [weight.node, self.user])
        flat = edit.op("Reshape", [ids, edit.ints([-1])])
        assert flat.dtype is not None
        count = edit.initializer(np.asarray(weight.n, flat.dtype.numpy()), "rows")
        flat = edit.op("Mod", [flat, count])  # a negative index counts from the end
        if self.columns is not None:
            codes, scales, zeros = self._from_columns(flat)
            block_axis = 0
        else:
            codes, scales, zeros = self._from_rows(flat)
            block_axis = 1
        inputs = [codes, scales, *([zeros] if zeros is not None else [])]
        y = edit.op("DequantizeLinear", inputs, {"axis": block_axis, "block_size": weight.block})
        if self.columns is not None:
            y = edit.op("Transpose", [y], {"perm": [1, 0]})
        shape = edit.op("Concat", [edit.op("Shape", [ids]), edit.ints([weight.k])], {"axis": 0})
        result = self.user.outputs[0]
        edit.replace(result, edit.op("Reshape", [y, shape], dtype=result.dtype, shape=result.shape))
        edit.sweep([self.user])

    def _from_columns(self, flat: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value | None]:
        edit, columns = self.edit, self.columns
        assert columns is not None and flat.dtype is not None

        def again(value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
            # A second name for the same bytes: runtimes fuse a product only if nothing else reads its initializers.
            view = View(tensor, tensor.dtype, [int(d) for d in tensor.shape.numpy()])
            return edit.op("Gather", [edit.initializer(view, f"{value.name}.gathered"), flat], {"axis": 1})

        codes_tensor, scales_tensor, zeros_tensor = columns.tensors
        scales = again(columns.scales, scales_tensor)
        if self.weight.bits == 8:
            codes = again(columns.codes, codes_tensor)
            if columns.zeros is None or zeros_tensor is None:
                return codes, scales, None
            return codes, scales, again(columns.zeros, zeros_tensor)
        two = edit.initializer(np.asarray(2, flat.dtype.numpy()), "two")
        pair = edit.op("Div", [flat, two])
        odd = edit.op("Cast", [edit.op("Mod", [flat, two])], {"to": int(onnx_ir.DataType.BOOL)})

        def pick(tensor: onnx_ir.TensorProtocol, rows: int, hint: str) -> onnx_ir.Value:
            stored = edit.initializer(View(tensor, onnx_ir.DataType.UINT8, (rows, self.weight.n // 2)), hint)
            low, high = self._halves(edit.op("Gather", [stored, pair], {"axis": 1}))
            return edit.op("Where", [odd, high, low])

        name = (columns.codes.name or "").removesuffix(".columns")
        return (
            pick(codes_tensor, self.weight.k, f"{name}.column_bytes"),
            scales,
            None if zeros_tensor is None else pick(zeros_tensor, self.weight.blocks, f"{name}.zero_point_bytes"),
        )

    def _from_rows(self, flat: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value | None]:
        edit, weight = self.edit, self.weight
        zeros = weight.row_zeros()

        def pick(tensor: onnx_ir.TensorProtocol, width: int, hint: str) -> onnx_ir.Value:
            taken = edit.op("Gather", [edit.initializer(tensor, hint), flat], {"axis": 0})
            if weight.bits == 8:
                return taken
            minus = edit.ints([-1], "last_axis")
            low, high = (edit.op("Unsqueeze", [half, minus]) for half in self._halves(taken))
            both = edit.op("Concat", [low, high], {"axis": -1})
            padded = width + width % 2
            values = edit.op("Reshape", [both, edit.ints([-1, padded])])
            if padded != width:
                values = edit.op("Slice", [values, edit.ints([0], "start"), edit.ints([width], "stop"), minus])
            return values

        codes = pick(weight.row_codes(), weight.k, "embedding.codes")
        scales = edit.op("Gather", [edit.initializer(weight.block_scales(), "embedding.scales"), flat], {"axis": 0})
        return codes, scales, None if zeros is None else pick(zeros, weight.blocks, "embedding.zero_points")

    def _halves(self, value: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value]:
        edit = self.edit
        low = edit.op("BitwiseAnd", [value, edit.initializer(np.asarray(15, np.uint8), "low_half")])
        four = edit.initializer(np.asarray(4, np.uint8), "four")
        return low, edit.op("BitShift", [value, four], {"direction": "RIGHT"})
