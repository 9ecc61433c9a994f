"""Products that kernel templates compute, with what follows them in the same kernel.

A template is found by the operators around a product. Its call stands in the generated file; constants that it wants in
another layout are packed when they are read for the first time. What no template takes is a call of PyTorch, and the
report has the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir

from ....ir.graph import attribute, dims, is_op, tensor_of
from .weights import EIGHT, FLOAT8, FOUR, Outer, constant, is_turned, pattern24, quantized

_HALF = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
_FLOATS = (*_HALF, onnx_ir.DataType.FLOAT)
_GROUPS = (32, 64, 128, 256)
_GROUPS24 = (64, 128)
_TORCH = {
    onnx_ir.DataType.FLOAT: "torch.float32", onnx_ir.DataType.FLOAT16: "torch.float16",
    onnx_ir.DataType.BFLOAT16: "torch.bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Norm:
    """A normalization of a product's first operand, which the product computes while it loads it.

    Attributes:
        function: in ``fused.py``.
        inputs: what is normalized, weights, and a bias where there is one.
        epsilon: of the normalization.
    """

    function: str
    inputs: tuple[onnx_ir.Value, ...]
    epsilon: float


@dataclass(frozen=True)
class Found:
    """A product that a template computes.

    Attributes:
        function: its name.
        module: where it is, below ``burnish.backends.triton``.
        operands: before the weights, some as variables of the generated file; None where one is missing.
        weight: the second operand as a tensor; None if it is packed.
        packed: whether the constants of the product are packed under the key of its node.
        options: more arguments of the call.
        channels: of the result.
        norm: in the place of the first operand.
    """

    function: str
    module: str
    operands: tuple[onnx_ir.Value | str | None, ...]
    weight: onnx_ir.Value | None
    packed: bool
    options: str
    channels: int
    norm: Norm | None = None


@dataclass(frozen=True)
class Codes:
    """An operand in codes, which a block before has left as it is.

    Attributes:
        node: the ``DequantizeLinear``.
        names: variables of its inputs.
    """

    node: onnx_ir.Node
    names: tuple[str | None, ...]


Given = Mapping[onnx_ir.Value, Codes]
Match = Callable[[onnx_ir.Node, Outer, Given], "Found | str | None"]
TEMPLATES: list[Match] = []
"""Tried in order, see :func:`find`."""


def template(match: Match) -> Match:
    """Add a template: what it says of a product is a call, a reason why it nearly was one, or None."""
    TEMPLATES.append(match)
    return match


def find(node: onnx_ir.Node, outer: Outer, given: Given) -> Found | str | None:
    """The template for a product; the first reason if PyTorch computes it, None where there is nothing to say."""
    reason: str | None = None
    if not is_op(node, "MatMul", "Gemm") or not _plain_gemm(node):
        return None
    for match in TEMPLATES:
        found = match(node, outer, given)
        if isinstance(found, Found):
            return found
        reason = reason or found
    return reason


@template
def _eight_by_eight(node: onnx_ir.Node, outer: Outer, given: Given) -> Found | str | None:
    """Codes by codes: int8 with a scale, and maybe a zero point, to a row; float8 with a scale."""
    x = node.inputs[0]
    before = None if x is None else given.get(outer.get(x, x))
    maker = before.node if before is not None else None if x is None else outer.get(x, x).producer()
    if not is_op(maker, "DequantizeLinear"):
        return None
    assert maker is not None
    weights = quantized(node, outer)
    codes, scales = maker.inputs[0], maker.inputs[1]
    zeros = maker.inputs[2] if len(maker.inputs) > 2 else None
    if weights is None or codes is None or scales is None or tensor_of(codes) is not None:
        return None
    if codes.dtype not in (onnx_ir.DataType.INT8, FLOAT8):
        return f"activations in codes of {'unknown type' if codes.dtype is None else codes.dtype.name}"
    n, k = weights.shape
    if weights.block is not None:
        return f"both operands are in 8 bits, but the weights have a scale for {weights.block} columns"
    if (weights.codes.dtype == FLOAT8) != (codes.dtype == FLOAT8) or weights.codes.dtype not in (*EIGHT, FLOAT8):
        return f"codes of {codes.dtype.name} by codes of {weights.codes.dtype.name}"
    if not weights.symmetric():
        return "both operands are in 8 bits, but the weights have zero points"
    if node.outputs[0].dtype not in _TORCH:
        return "the type of the product is not known"
    whole, rank = dims(codes), len(dims(codes) or ())
    block, shape = attribute(maker, "block_size", 0), dims(scales)
    to_rows = block == k and attribute(maker, "axis", 1) % max(1, rank) == rank - 1
    to_all = shape is not None and (not shape or list(shape) == [1])
    if whole is None or not (to_rows or to_all):
        return "its first operand has no scale to a row"
    options = f"dtype={_TORCH[node.outputs[0].dtype]}"
    operands: list[onnx_ir.Value | str | None] = [codes, scales, None if codes.dtype == FLOAT8 else zeros]
    if before is not None:
        operands = [None if v is None else name for v, name in zip(operands, (*before.names, None), strict=False)]
    return Found("w8a8", "quantized", tuple(operands), None, True, options, n)


@template
def _sparse(node: onnx_ir.Node, outer: Outer, given: Given) -> Found | str | None:
    """Weights with the pattern 2:4, as values or in 4-bit codes."""
    x = node.inputs[0]
    if not pattern24(node) or x is None:
        return None
    if x.dtype not in _FLOATS:
        return "weights with the pattern 2:4 have no kernel for this type"
    found = quantized(node, outer)
    if found is None:
        tensor, turned = constant(node, outer)
        if tensor is None or len(tensor.shape) != 2 or tensor.dtype != x.dtype:
            return "weights with the pattern 2:4 are in a form that has no kernel"
        rows, columns = (int(n) for n in tensor.shape)  # type: ignore[arg-type]
        n, k = (rows, columns) if turned else (columns, rows)
        if k % 4:
            return "the input channels are no whole quads"
        return Found("sparse24", "sparse", (x,), None, True, "", n)
    if found.codes.dtype not in FOUR or found.block not in _GROUPS24:
        return "weights with the pattern 2:4 have a kernel in 4 bits with groups of 64 or 128, no other codes"
    if not found.symmetric():
        return "weights with the pattern 2:4 have no kernel for codes with zero points"
    return _coded(found.block, found.shape, found.scales, x, "sparse24", "sparse")


@template
def _few_bits(node: onnx_ir.Node, outer: Outer, given: Given) -> Found | str | None:
    """Weights in 4 or 8 bits, expanded in registers."""
    x = node.inputs[0]
    found = quantized(node, outer)
    if found is None or x is None or x.dtype not in _FLOATS:
        return None
    if found.codes.dtype in FOUR:
        if found.block not in _GROUPS:
            return "weights in 4 bits have kernels for groups of 32, 64, 128 and 256"
        return _coded(found.block, found.shape, found.scales, x, "w4a16", "quantized")
    if found.codes.dtype in EIGHT:
        if found.block is not None and found.block not in _GROUPS:
            return "weights in 8 bits have kernels for groups of 32, 64, 128 and 256, and for whole channels"
        return _coded(found.block, found.shape, found.scales, x, "w8a16", "quantized")
    if found.codes.dtype == FLOAT8 and found.block is None:
        return _coded(None, found.shape, found.scales, x, "w8a16", "quantized")
    return f"weights in codes of {found.codes.dtype.name} have no kernel in this form"


def _coded(
    block: int | None, shape: tuple[int, int], scales: onnx_ir.TensorProtocol, x: onnx_ir.Value, function: str,
    module: str,
) -> Found | str:  # fmt: skip
    if scales.dtype != x.dtype:
        return f"scales are {scales.dtype.name}, activations {'unknown' if x.dtype is None else x.dtype.name}"
    if block is not None and shape[1] % block:
        return f"{shape[1]} input channels are no multiple of the group of {block}"
    return Found(function, module, (x,), None, True, "", shape[0])


@template
def _dense(node: onnx_ir.Node, outer: Outer, given: Given) -> Found | str | None:
    """Two matrices in 16 bits, where something follows that fuses; alone, a vendor's kernel is taken."""
    x, w = node.inputs[0], node.inputs[1]
    if x is None or w is None or x.shape is None or w.shape is None:
        return None
    if x.dtype not in _HALF:
        return "products in float32 are a vendor's" if x.dtype == onnx_ir.DataType.FLOAT else None
    if len(w.shape) != 2 or len(x.shape) < 2 or not all(isinstance(d, int) for d in w.shape):
        return "its second operand is no matrix of known size"
    turned = is_turned(node)
    maker = outer.get(w, w).producer()
    if is_op(maker, "Transpose") and not turned:
        assert maker is not None
        source = maker.inputs[0]
        if source is not None and tensor_of(outer.get(source, source)) is not None:
            w, turned = source, True
    assert w.shape is not None
    n = int(w.shape[0 if turned else 1])  # type: ignore[arg-type]
    return Found("gemm", "gemm", (x,), w, False, "" if turned else "transposed=False", n, _norm(x))


def _norm(x: onnx_ir.Value) -> Norm | None:
    """A normalization in the same block that nobody but the product reads."""
    maker = x.producer()
    if not is_op(maker, "RMSNormalization", "LayerNormalization") or len(list(x.uses())) != 1 or x.is_graph_output():
        return None
    assert maker is not None
    inputs = [v for v in maker.inputs if v is not None]
    source, size = dims(inputs[0]), dims(x)
    axis = attribute(maker, "axis", -1)
    if source is None or size is None or axis not in (-1, len(size) - 1) or any(v.name for v in maker.outputs[1:]):
        return None
    wanted = 2 if maker.op_type == "RMSNormalization" else 3
    if len(inputs) != wanted or len({v.dtype for v in inputs}) != 1:
        return None
    function = "rms_norm" if wanted == 2 else "layer_norm"
    return Norm(function, tuple(inputs), float(attribute(maker, "epsilon", 1e-5)))


def _plain_gemm(node: onnx_ir.Node) -> bool:
    """Whether a product has no factors of its own, and its first operand as it is."""
    if not is_op(node, "Gemm"):
        return True
    return (
        not attribute(node, "transA", 0)
        and attribute(node, "alpha", 1.0) == 1.0
        and (len(node.inputs) < 3 or node.inputs[2] is None)
    )
