"""Products that kernel templates compute, with what follows them in the same kernel.

A template is found by the operators around a product. Its call stands in the generated file; constants that it wants in
another layout are packed when they are read for the first time. What no template takes is a call of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir

from ....ir.graph import attribute, is_op, tensor_of

if TYPE_CHECKING:
    import torch

_HALF = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
_FLOATS = (*_HALF, onnx_ir.DataType.FLOAT)
_GROUPS = (32, 64, 128, 256)

Outer = Mapping[onnx_ir.Value, onnx_ir.Value]
"""What the inputs of a function are where it is called."""


@dataclass(frozen=True)
class Found:
    """A product that a template computes.

    Attributes:
        function: its name.
        module: where it is, below ``burnish.backends.triton``.
        x: the first operand.
        weight: the second operand as a tensor; None if it is packed.
        packed: whether the constants of the product are packed under the key of its node.
        options: more arguments of the call.
        channels: of the result.
    """

    function: str
    module: str
    x: onnx_ir.Value
    weight: onnx_ir.Value | None
    packed: bool
    options: str
    channels: int


Match = Callable[[onnx_ir.Node, Outer], "Found | None"]
TEMPLATES: list[Match] = []
"""Tried in order, see :func:`find`."""


def template(match: Match) -> Match:
    """Add a template."""
    TEMPLATES.append(match)
    return match


def find(node: onnx_ir.Node, outer: Outer) -> Found | None:
    """The template for a product; None if PyTorch computes it."""
    for match in TEMPLATES:
        found = match(node, outer)
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class Quantized:
    """Constant weights in blocks of codes.

    Attributes:
        codes, scales, zeros: the constants; zero points may be None.
        axis: of the codes along which a block runs: the one that the product sums over.
        block: its length.
        turned: whether the codes are [N, K].
    """

    codes: onnx_ir.TensorProtocol
    scales: onnx_ir.TensorProtocol
    zeros: onnx_ir.TensorProtocol | None
    axis: int
    block: int
    turned: bool


def quantized(node: onnx_ir.Node, outer: Outer) -> Quantized | None:
    """The blocks behind the second operand of a product, through a transpose."""
    value = node.inputs[1]
    maker = None if value is None else outer.get(value, value).producer()
    turned = is_op(node, "Gemm") and bool(attribute(node, "transB", 0))
    if is_op(maker, "Transpose"):
        assert maker is not None
        if attribute(maker, "perm") != [1, 0]:
            return None
        turned = not turned
        value = maker.inputs[0]
        maker = None if value is None else outer.get(value, value).producer()
    if not is_op(maker, "DequantizeLinear"):
        return None
    assert maker is not None
    tensors = [None if v is None else tensor_of(outer.get(v, v)) for v in maker.inputs]
    codes, scales = tensors[0], tensors[1]
    if (
        codes is None
        or scales is None
        or len(codes.shape) != 2
        or (len(maker.inputs) > 2 and maker.inputs[2] is not None and tensors[2] is None)
    ):
        return None
    axis = attribute(maker, "axis", 1) % 2
    block = attribute(maker, "block_size", 0)
    if not block or axis != (1 if turned else 0):
        return None
    return Quantized(codes, scales, tensors[2] if len(tensors) > 2 else None, axis, block, turned)


@template
def _four_bits(node: onnx_ir.Node, outer: Outer) -> Found | None:
    """Weights in 4 or 8 bits, expanded in registers."""
    x = node.inputs[0]
    if not is_op(node, "MatMul", "Gemm") or x is None or x.dtype not in _FLOATS or not _plain_gemm(node):
        return None
    found = quantized(node, outer)
    if found is None or found.block not in _GROUPS or found.scales.dtype != x.dtype:
        return None
    small = (onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4)
    wide = (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8)
    if found.codes.dtype not in (*small, *wide):
        return None
    rows, columns = (int(n) for n in found.codes.shape)  # type: ignore[arg-type]
    n, k = (rows, columns) if found.turned else (columns, rows)
    if k % found.block:
        return None
    function = "w4a16" if found.codes.dtype in small else "w8a16"
    return Found(function, "quantized", x, None, True, "", n)


@template
def _dense(node: onnx_ir.Node, outer: Outer) -> Found | None:
    """Two matrices in 16 bits, where something follows that fuses; alone, a vendor's kernel is taken."""
    if not is_op(node, "MatMul", "Gemm") or not _plain_gemm(node):
        return None
    x, w = node.inputs[0], node.inputs[1]
    if x is None or w is None or x.dtype not in _HALF or x.shape is None or w.shape is None:
        return None
    if len(w.shape) != 2 or len(x.shape) < 2 or not all(isinstance(d, int) for d in w.shape):
        return None
    turned = is_op(node, "Gemm") and bool(attribute(node, "transB", 0))
    maker = outer.get(w, w).producer()
    if is_op(maker, "Transpose") and not turned:
        assert maker is not None
        source = maker.inputs[0]
        if source is not None and tensor_of(outer.get(source, source)) is not None:
            w, turned = source, True
    assert w.shape is not None
    n = int(w.shape[0 if turned else 1])  # type: ignore[arg-type]
    return Found("gemm", "gemm", x, w, False, "" if turned else "transposed=False", n)


def _plain_gemm(node: onnx_ir.Node) -> bool:
    """Whether a product has no factors of its own, and its first operand as it is."""
    if not is_op(node, "Gemm"):
        return True
    return (
        not attribute(node, "transA", 0)
        and attribute(node, "alpha", 1.0) == 1.0
        and (len(node.inputs) < 3 or node.inputs[2] is None)
    )


def pack(node: onnx_ir.Node, outer: Outer, device: torch.device) -> Any:
    """The weights of a product in the layout of its template.

    Raises:
        ModelError: they do not fit it.
    """
    import torch

    from ...reference.registry import tensor_from
    from ..codes import Codes8, pack4

    found = quantized(node, outer)
    assert found is not None
    codes = tensor_from(found.codes, device)
    scales = tensor_from(found.scales, device)
    zeros = None if found.zeros is None else tensor_from(found.zeros, device)
    if not found.turned:
        codes, scales = codes.T, scales.T
        zeros = None if zeros is None else zeros.T
    signed = found.codes.dtype in (onnx_ir.DataType.INT4, onnx_ir.DataType.INT8)
    middle = 8 if found.codes.dtype in (onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4) else 128
    shift = middle if signed else 0
    if zeros is None and not signed:
        zeros = torch.zeros(scales.shape, dtype=torch.uint8, device=device)
    elif zeros is not None:
        zeros = (zeros.to(torch.int16) + shift).to(torch.uint8).contiguous()
    places = (codes.to(torch.int16) + shift).to(torch.uint8).contiguous()
    if zeros is not None and bool((zeros == middle).all()):
        zeros = None
    if middle == 8:
        return pack4(places, scales.contiguous(), found.block, zeros)
    return Codes8(places, scales.contiguous(), found.block, "integer", zeros)
