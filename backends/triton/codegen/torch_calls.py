"""What is left to PyTorch and reads better as a plain call than as a rule of the reference backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import onnx_ir

from ....ir.graph import attribute, rank
from ....ir.symbolic import same

VIEWS = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Expand", "Slice", "Split"])
"""Operators that PyTorch needs no copy for, most of the time."""


class Argument(Protocol):
    """An input; its text is the variable that holds it, which is made when the text is asked for."""

    value: onnx_ir.Value | None


Call = Callable[[onnx_ir.Node, Sequence[Argument], "Sequence[str] | None", int], "str | None"]
"""(node, inputs, sizes of the output if they are known, opset) to source."""


def _matmul(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    return f"torch.matmul({x[0]}, {x[1]})"


def _gemm(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    a = f"{x[0]}.T" if attribute(node, "transA", 0) else str(x[0])
    b = f"{x[1]}.T" if attribute(node, "transB", 0) else str(x[1])
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if len(x) < 3 or x[2].value is None:
        return f"torch.mm({a}, {b})" + ("" if alpha == 1 else f" * {alpha}")
    scales = ("" if beta == 1 else f", beta={beta}") + ("" if alpha == 1 else f", alpha={alpha}")
    return f"torch.addmm({x[2]}, {a}, {b}{scales})"


def _conv(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    dimensions = rank(x[1].value)
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or dimensions is None:
        return None
    count = dimensions - 2
    pads = attribute(node, "pads", [0] * 2 * count)
    if pads[:count] != pads[count:] or count not in (1, 2, 3):
        return None
    settings = []
    for name, word in (("strides", "stride"), ("dilations", "dilation")):
        given = attribute(node, name, [1] * count)
        if any(n != 1 for n in given):
            settings.append(f"{word}={tuple(given)}")
    if any(pads):
        settings.append(f"padding={tuple(pads[:count])}")
    if attribute(node, "group", 1) != 1:
        settings.append(f"groups={attribute(node, 'group', 1)}")
    return f"torch.nn.functional.conv{count}d({', '.join([*map(str, x), *settings])})"


def _transpose(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    perm = attribute(node, "perm")
    return None if perm is None else f"{x[0]}.permute({', '.join(map(str, perm))})"


def _reshape(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    return None if shape is None else f"{x[0]}.reshape({_sizes(shape)})"


def _expand(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    return None if shape is None else f"{x[0]}.expand({_sizes(shape)})"


def _sizes(shape: Sequence[str]) -> str:
    return ", ".join(shape) if shape else "()"


def _identity(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    return str(x[0])


def _attention(node: onnx_ir.Node, x: Sequence[Argument], shape: Sequence[str] | None, opset: int) -> str | None:
    """PyTorch's own kernels; masks that are built from lengths are left to the rule."""
    masked = len(x) > 3 and x[3].value is not None
    causal = bool(attribute(node, "is_causal", 0))
    q, k = x[0].value, x[1].value
    if (
        any(a.value is not None for a in x[4:])
        or rank(q) != 4
        or (masked and causal)
        or attribute(node, "softcap", 0.0)
    ):
        return None
    assert q is not None and k is not None and q.shape is not None and k.shape is not None
    heads, groups = q.shape[1], k.shape[1]
    if not isinstance(heads, int) or not isinstance(groups, int):
        return None
    if masked:
        mask = x[3].value
        assert mask is not None
        if mask.shape is None or mask.dtype is None or not same(mask.shape[-1], k.shape[2]):
            return None
        if mask.dtype != onnx_ir.DataType.BOOL and mask.dtype != q.dtype:
            return None
    settings = [f"attn_mask={x[3]}"] if masked else ["is_causal=True"] if causal else []
    if attribute(node, "scale"):
        settings.append(f"scale={attribute(node, 'scale')}")
    if heads != groups:
        settings.append("enable_gqa=True")
    return f"torch.nn.functional.scaled_dot_product_attention({', '.join([*map(str, x[:3]), *settings])})"


CALLS: dict[str, Call] = {
    "Attention": _attention, "MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "Transpose": _transpose,
    "Identity": _identity, "Expand": _expand, **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
}  # fmt: skip
"""Source of the call by operator; None where the rule of the reference backend says it better."""
