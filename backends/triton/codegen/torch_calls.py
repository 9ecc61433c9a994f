"""What is left to PyTorch and reads better as a plain call than as a rule of the reference backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir

from ....ir.graph import attribute, constant

VIEWS = frozenset(
    "Reshape Flatten Squeeze Unsqueeze Transpose Identity Expand Slice Split".split()
)
"""Operators that PyTorch needs no copy for, most of the time."""

Call = Callable[[onnx_ir.Node, Sequence[str], int], "str | None"]


def _matmul(node: onnx_ir.Node, x: Sequence[str], opset: int) -> str | None:
    return f"torch.matmul({x[0]}, {x[1]})"


def _gemm(node: onnx_ir.Node, x: Sequence[str], opset: int) -> str | None:
    a = f"{x[0]}.T" if attribute(node, "transA", 0) else x[0]
    b = f"{x[1]}.T" if attribute(node, "transB", 0) else x[1]
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if len(x) < 3 or x[2] == "None":
        return f"torch.mm({a}, {b})" + ("" if alpha == 1 else f" * {alpha}")
    scales = ("" if beta == 1 else f", beta={beta}") + ("" if alpha == 1 else f", alpha={alpha}")
    return f"torch.addmm({x[2]}, {a}, {b}{scales})"


def _conv(node: onnx_ir.Node, x: Sequence[str], opset: int) -> str | None:
    weight = node.inputs[1]
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or weight is None or weight.shape is None:
        return None
    count = len(weight.shape) - 2
    pads = attribute(node, "pads", [0] * 2 * count)
    if pads[:count] != pads[count:] or count not in (1, 2, 3):
        return None
    settings = []
    for name, word, default in (("strides", "stride", 1), ("dilations", "dilation", 1)):
        given = attribute(node, name, [default] * count)
        if any(n != default for n in given):
            settings.append(f"{word}={tuple(given)}")
    if any(pads):
        settings.append(f"padding={tuple(pads[:count])}")
    if attribute(node, "group", 1) != 1:
        settings.append(f"groups={attribute(node, 'group', 1)}")
    return f"torch.nn.functional.conv{count}d({', '.join([*x, *settings])})"


def _transpose(node: onnx_ir.Node, x: Sequence[str], opset: int) -> str | None:
    perm = attribute(node, "perm")
    return None if perm is None else f"{x[0]}.permute({', '.join(map(str, perm))})"


def _unsqueeze(node: onnx_ir.Node, x: Sequence[str], opset: int) -> str | None:
    axes = constant(node.inputs[1], limit=8) if len(node.inputs) > 1 else None
    return f"{x[0]}.unsqueeze({int(axes.reshape(-1)[0])})" if axes is not None and axes.size == 1 else None


def _reshape(node: onnx_ir.Node, x: Sequence[str], opset: int) -> str | None:
    shape = constant(node.inputs[1], limit=16)
    if shape is None or (shape == 0).any():
        return None
    return f"{x[0]}.reshape({', '.join(str(int(n)) for n in shape)})"


CALLS: dict[str, Call] = {
    "MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "Transpose": _transpose, "Unsqueeze": _unsqueeze,
    "Reshape": _reshape, "Identity": lambda node, x, opset: x[0],
}  # fmt: skip
"""Source of the call by operator; None where the rule of the reference backend says it better."""
