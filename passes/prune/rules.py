"""The rule of each operator: how it carries grids on."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir

from ...ir.traits import Kind, kind, reduced_axes
from . import contractions, movement, placewise
from .coupling import Coupling

Rule = Callable[[Coupling, onnx_ir.Node], None]


def default(c: Coupling, node: onnx_ir.Node) -> None:
    """What the trait table says of an operator without a rule of its own."""
    what = kind(node)
    if what is Kind.ELEMENTWISE:
        placewise.elementwise(c, node)
    elif what is Kind.NORMALIZATION and len(node.inputs) <= 3:
        placewise.normalization(c, node)
    elif what is Kind.REDUCTION and reduced_axes(node) is not None:
        placewise.reduction(c, node)
    elif what is not Kind.CONSTANT:
        c.stop(node, f"{node.op_type} reads it")


RULES: dict[str, Rule] = {
    "MatMul": contractions.matmul,
    "Gemm": contractions.gemm,
    "Conv": contractions.conv,
    "ConvTranspose": contractions.conv_transpose,
    "Attention": contractions.attention,
    "RotaryEmbedding": contractions.rotary,
    "BatchNormalization": placewise.batch_normalization,
    "GroupNormalization": placewise.group_normalization,
    "Transpose": movement.transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), movement.reshape),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "Resize", "Upsample"), placewise.channels_only),
    **dict.fromkeys(("Identity", "Dropout", "Clip", "Cast", "CastLike"), placewise.same),
    "Expand": movement.expand,
    "Concat": movement.concat,
    "Split": movement.split,
    "Slice": movement.slice_,
    "Gather": movement.gather,
    "Pad": movement.pad,
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "Trilu", "CumSum"), lambda c, n: c.stop(n, f"{n.op_type} reads it")
    ),
}
"""The rule of each operator; :func:`default` for all others."""
